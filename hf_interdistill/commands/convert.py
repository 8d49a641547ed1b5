"""`interdistill convert`: a reward model of another trainer as a plain sequence classifier with one output."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..utils.atomic_io import require_writable
from ..utils.devices import find_device


@dataclass
class ConvertArguments:
    """What to convert, and where to. The result loads in `RewardScorer`, transformers' pipeline and vLLM.

    Args:
        model: checkpoint of LLaMA-Factory, ms-swift, TRL, OpenRLHF, GRM, or with several outputs: folder or Hub name.
        output: folder to write; it must not exist.
        format: `value_head`, `openrlhf`, `grm`, `ms_swift` or `multi_output`; by default detected from the files.
        weights: weights of several outputs, `NAME=NUMBER` each, or a JSON file.
        positive_label: of two outputs, the better one: the reward is its logit minus the other's.
        normalize_reward: apply OpenRLHF's mean and std; by default as its config says.
        drop_bias: leave out a constant that the result cannot hold; differences of rewards stay the same.
        base_model: base model of an adapter, in place of the one that it names.
        revision: revision of the model on the Hub.
        device: where to compare the rewards (`cpu`, `cuda`, ...); by default a GPU if there is one.
        dry_run: print the plan; load no weights but the head's, and write nothing.
    """

    model: str = field(metadata={"help": "Checkpoint of another trainer: folder or Hub name."})
    output: str = field(metadata={"help": "Folder to write; it must not be there."})
    format: str | None = field(
        default=None, metadata={"help": "value_head, openrlhf, grm, ms_swift, multi_output; default: from the files."}
    )
    weights: list[str] | None = field(
        default=None, metadata={"help": "What each of several outputs counts: NAME=NUMBER ..., or a JSON file."}
    )
    positive_label: str | None = field(
        default=None, metadata={"help": "Of two outputs, the better one: reward = its logit minus the other's."}
    )
    normalize_reward: bool | None = field(
        default=None, metadata={"help": "Apply OpenRLHF's mean and std; default: as its config says."}
    )
    drop_bias: bool = field(default=False, metadata={"help": "Leave out a constant that the result cannot hold."})
    base_model: str | None = field(default=None, metadata={"help": "Base model of an adapter, if it was moved."})
    revision: str | None = field(default=None, metadata={"help": "Revision of the model on the Hub."})
    device: str | None = field(default=None, metadata={"help": "Where to compare rewards; default: a GPU if there."})
    dry_run: bool = field(default=False, metadata={"help": "Print the plan and write nothing."})


ARGUMENTS = (ConvertArguments,)


def run(args: ConvertArguments) -> dict[str, str]:
    """Plan, print the plan, convert; returns the facts of the conversion."""
    from ..conversion.checkpoint import open_checkpoint
    from ..conversion.convert import convert, plan_conversion, require_new
    from ..conversion.formats import Choices

    require_new(Path(args.output))
    if not args.dry_run:
        require_writable("output", str(Path(args.output).parent), "the converted model would be lost")
    device = find_device(args.device)
    checkpoint = open_checkpoint(args.model, revision=args.revision, base_model=args.base_model)
    choices = Choices(args.weights, args.positive_label, args.normalize_reward)
    plan = plan_conversion(checkpoint, args.format, choices, drop_bias=args.drop_bias)
    for name, fact in plan.facts.items():
        print(f"{name}: {fact}")
    if args.dry_run:
        print(f"A dry run: nothing was written to {args.output}.")
        return plan.facts
    facts = convert(plan, args.output, device)
    print(f"parity: {facts['parity']}")
    print(f"Written: {args.output}")
    return facts
