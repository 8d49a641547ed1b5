"""What happens to an earlier run in the `output_dir` of a new one."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from .checkpoints import is_resume_requested, output_folder, require_no_older_run


@dataclass
class OutputDirArguments:
    """What happens to an earlier run.

    Args:
        overwrite: remove the checkpoints of an earlier run in `output_dir` and start again; otherwise a new run there
            is refused.
    """

    overwrite: bool = field(
        default=False, metadata={"help": "Remove the checkpoints of an earlier run in `output_dir` and start again."}
    )


def prepare_output_dir(output_dir: OutputDirArguments, args: TrainingArguments, *, is_removing: bool = True) -> None:
    """Refuse, remove or (when resuming) leave the checkpoints that are in `output_dir`.

    Args:
        output_dir: what to do with them. args: name the folder, and say whether the run resumes.
        is_removing: whether to remove them now. A command first asks without, and removes when nothing else can stop
            the new run.

    Raises:
        ValueError: there are checkpoints and neither `resume_from_checkpoint` nor `overwrite` is set, or both are.
    """
    if not is_resume_requested(args.resume_from_checkpoint):
        require_no_older_run(output_folder(args), output_dir.overwrite, is_removing and args.should_save)
    elif output_dir.overwrite:
        raise ValueError(
            f"`resume_from_checkpoint` is {args.resume_from_checkpoint!r}, which resumes an earlier run, and "
            "`overwrite` starts again. Leave one of them out."
        )
