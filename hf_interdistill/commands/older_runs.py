"""What becomes of an earlier run in the folder of a new one."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..training.checkpoints import is_resume_requested, require_no_older_run


@dataclass
class OlderRunArguments:
    """What becomes of an older run.

    Args:
        overwrite: remove the checkpoints of an earlier run in `output_dir` and start anew; otherwise a new run there
            is refused.
    """

    overwrite: bool = field(
        default=False, metadata={"help": "Remove the checkpoints of an earlier run in `output_dir` and start anew."}
    )


def settle_older_run(older: OlderRunArguments, args: TrainingArguments) -> None:
    """Refuse, remove or (when resuming) leave the checkpoints that are in `output_dir`.

    Raises:
        ValueError: there are checkpoints and neither `resume_from_checkpoint` nor `overwrite` is set, or both are.
    """
    if not is_resume_requested(args.resume_from_checkpoint):
        require_no_older_run(args.output_dir, older.overwrite, args.should_save)
    elif older.overwrite:
        raise ValueError(
            f"`resume_from_checkpoint` is {args.resume_from_checkpoint!r}, which goes on with an earlier run, and "
            "`overwrite` starts anew. Leave one of them out."
        )
