"""Converts a checkpoint: plan, build, write into a scratch folder, compare, and put in place."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from ..hub.licenses import legal_files
from ..scoring.formatting import RewardFormatter
from ..scoring.scorer import RewardScorer
from ..utils.atomic_io import write_atomically
from ..utils.context_length import context_length
from ..utils.privacy import public_name
from ..utils.sources import load_tokenizer
from .cards import converted_card
from .checkpoint import Checkpoint
from .formats import FORMATS, Choices, Source, recognize
from .originals import load_original, model_config, original_rewards
from .padding import conversations, plain_texts, settle_padding
from .results import assemble, constant_place, output_layer, reduce_outputs, result_class, shown_constant

# Largest difference of a reward from the original's, of the largest reward: what rounding in float32 explains.
TOLERANCE = 1e-4


class ParityError(ValueError):
    """The result gives different rewards than the original, so it was not kept."""


@dataclass(frozen=True)
class Plan:
    """What a conversion does.

    Args:
        checkpoint, source: what is converted. config: of its model.
        tokenizer: of the result. original_pad: padding before it was settled.
        place: where a constant goes (`results.constant_place`).
        dtype: of the result's backbone.
        facts: all of that in words.
    """

    checkpoint: Checkpoint
    source: Source
    config: PretrainedConfig
    tokenizer: Any
    original_pad: int | None
    place: str
    dtype: torch.dtype
    facts: dict[str, str]


def plan_conversion(checkpoint: Checkpoint, wanted: str | None, choices: Choices, *, drop_bias: bool = False) -> Plan:
    """Inspect a checkpoint; of its weights only the head is loaded.

    Args:
        wanted: the format, if the user names one. choices: about outputs and normalization.
        drop_bias: leave out a constant that the result cannot hold.

    Raises:
        PlainModelError: there is nothing to convert.
        ValueError: something is missing, broken or undecided; the message gives the value, the rule and the fix.
    """
    config = model_config(checkpoint, wanted)
    hidden_size = config.get_text_config().hidden_size
    if getattr(config, "word_embed_proj_dim", None) is not None:  # OPT's, as TRL's value head does
        hidden_size = config.word_embed_proj_dim
    source = recognize(checkpoint, hidden_size, wanted, choices)
    if source.head is None and drop_bias:
        raise ValueError("`drop_bias` is true, but the head of this model keeps its bias. Leave it out.")
    shell = None if source.head is None else result_class(checkpoint.name, config)
    original = load_original(checkpoint, source, config, "meta")
    if source.head is None:
        place, head, name = "none", output_layer(original, len(source.mix), checkpoint.name), type(original).__name__
    else:
        place = constant_place(shell, source.head.constant(), drop_bias)
        head, name = source.head_name, type(shell).__name__
    tokenizer = load_tokenizer(checkpoint.folder)
    original_pad = tokenizer.pad_token_id
    padding = settle_padding(tokenizer, source.reads_mask)
    dtype = torch.float32 if checkpoint.adapter is not None else checkpoint.stored_dtype()
    facts = {
        "format": f"{source.format} ({FORMATS[source.format]})",
        "result": f"{name}, backbone in {str(dtype).removeprefix('torch.')}, score head in float32",
        "head": f"`{head}`, {len(source.mix)} output(s) on hidden states of {hidden_size}",
    }
    if len(source.mix) > 1:
        counted = zip(source.mix.tolist(), source.mix_labels, strict=True)
        facts["reward"] = " + ".join(f"{value:g} x {label}" for value, label in counted if value)
    if source.head is not None:
        facts["constant"] = shown_constant(source.head.constant(), place)
        if source.head.std != 1 or source.head.mean != 0:
            facts["normalization"] = f"(reward - {source.head.mean:g}) / {source.head.std:g}, put into the head"
    if checkpoint.adapter is not None:
        base = checkpoint.adapter["base_model_name_or_path"]
        facts["adapter"] = f"merged into {public_name(str(base))}, in float32"
    if padding is not None:
        facts["padding"] = padding
    facts |= {f"note {number}": note for number, note in enumerate(source.notes, 1)}
    return Plan(checkpoint, source, config, tokenizer, original_pad, place, dtype, facts)


def convert(plan: Plan, output: str | Path, device: str = "cpu") -> dict[str, str]:
    """Write the result to a new folder, if it gives the original's rewards.

    Args:
        output: the folder; it appears complete, in one step. device: where both models run.

    Returns:
        The facts of the plan and of the comparison.

    Raises:
        ParityError: other rewards or tokens than the original's.
        IncompleteModelError: weights are missing. ValueError: what is wrong with the weights.
    """
    checkpoint, source, output = plan.checkpoint, plan.source, Path(output)
    original = load_original(checkpoint, source, plan.config, device)
    rows = _rows(original, plan.tokenizer)
    expected = torch.tensor(original_rewards(original, source, rows, plan.original_pad))
    if not expected.isfinite().all():
        raise ValueError(
            f"{public_name(checkpoint.name)} gives the rewards {_shown(expected)}, which are not all finite: "
            "weights of its backbone are broken. Take an earlier checkpoint, or copy its files again."
        )
    if source.head is None:
        model = reduce_outputs(original, source.mix, checkpoint.name)
    else:
        shell = result_class(checkpoint.name, plan.config)
        model = assemble(shell, original, source, plan.place)
        del shell
    tokenizer = plan.tokenizer
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if source.head is not None and plan.place == "dropped":
        expected = expected - source.head.constant()
    with new_folder(output) as scratch:
        _save(model, tokenizer, scratch, plan.dtype)
        del model, original
        facts = {**plan.facts, "parity": _compare(scratch, plan, rows, expected, device)}
        card = converted_card(
            *(checkpoint, output.name, _class_of(scratch), facts, bool(tokenizer.chat_template)),
        )
        write_atomically(scratch / "README.md", str(card))
        for path in legal_files(checkpoint.folder):
            shutil.copy2(path, scratch / path.name)
    return facts


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A scratch folder beside `output`, which becomes it in one step when the block ends without an error.

    Raises:
        FileExistsError: there is something of that name already.
    """
    require_new(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        mask = os.umask(0)
        os.umask(mask)
        scratch.chmod(0o777 & ~mask)
        yield scratch
        for path in scratch.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        os.rename(scratch, output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def require_new(output: Path) -> None:
    """Raise `FileExistsError` unless `output` is free, or an empty folder."""
    if output.is_symlink() or (output.exists() and not (output.is_dir() and not any(output.iterdir()))):
        raise FileExistsError(
            f"`output` is {str(output)!r}, which exists already and would be overwritten. Name a new folder."
        )


def _rows(model: Any, tokenizer: Any) -> list[list[int]]:
    """Token rows to compare rewards on: plain texts with EOS, and conversations."""
    limit = context_length(model)
    rows = [*plain_texts(tokenizer), *conversations(tokenizer)]
    return [row for row in rows if row and (limit is None or len(row) <= limit)]


def _save(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype) -> None:
    """Weights as they were stored (the same numbers), what is new in the head in float32."""
    prefix = f"{model.base_model_prefix}."
    weights = {
        name: tensor.to(dtype) if name.startswith(prefix) and _is_exact(tensor, dtype) else tensor
        for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=weights)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    write_atomically(path, json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    tokenizer.save_pretrained(folder)


def _is_exact(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    return tensor.is_floating_point() and torch.equal(tensor.to(dtype).to(tensor.dtype), tensor)


def _compare(folder: Path, plan: Plan, rows: list[list[int]], expected: torch.Tensor, device: str) -> str:
    """Compare what was written, as users load it, with the original; what was found, in words."""
    scorer = RewardScorer.from_pretrained(str(folder)).to(device)
    own = _rows(scorer.model, scorer.tokenizer)
    if own != rows:
        raise ParityError(
            "The tokenizer that was written gives different tokens than the original's. Nothing was kept."
        )
    _require_same_texts(plan, scorer.tokenizer)
    found = torch.tensor(scorer.score_ids(rows))
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-8))
    if not error <= TOLERANCE:
        raise ParityError(
            f"The result gives the rewards {_shown(found)}, but the original {_shown(expected)}, which differ by "
            f"{error:.2g} of the largest, above {TOLERANCE:g}. Nothing was kept. Is `format` right "
            f"({plan.source.format})? Otherwise this model has a part that a plain sequence classifier lacks."
        )
    return (
        f"{len(rows)} texts: largest difference from the original's rewards {error:.1g} of the largest reward "
        f"(tolerance {TOLERANCE:g}, float32)"
    )


def _require_same_texts(plan: Plan, written: Any) -> None:
    """The written tokenizer against the original one, whose padding may have been another."""
    original = load_tokenizer(plan.checkpoint.folder)
    for prompt, completion in (("Why? ", "So."), ("", "  Two  spaces,\ttabs\nand lines, naïve 漢字 🙂.")):
        first, second = (RewardFormatter(each).encode(prompt, completion) for each in (original, written))
        if first != second or original.chat_template != written.chat_template:
            raise ParityError(
                f"The tokenizer that was written reads {completion!r} as {second[:8]}, the original's as {first[:8]}, "
                "or has another chat template. Nothing was kept. Save the original's again with this version of "
                "transformers (`save_pretrained`)."
            )


def _class_of(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]


def _shown(rewards: torch.Tensor) -> list[float]:
    return [round(reward, 4) for reward in rewards.tolist()]
