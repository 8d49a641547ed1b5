"""Checks which checkpoints a run can resume from: a kill or a full disk leaves incomplete ones behind."""

from __future__ import annotations

import json
import logging
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from ..utils.sources import close_names

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

_STATE = "trainer_state.json"  # transformers writes it last
_WEIGHTS = ("model*.safetensors", "adapter_model.safetensors", "pytorch_model*", "adapter_model.bin")
_DEEPSPEED = "latest"  # DeepSpeed's own file: weights, optimizer and schedule are in the folder that it names


class CheckpointError(OSError):
    """A checkpoint is damaged or cannot be written; the message says how to fix it."""


@contextmanager
def as_checkpoint_error(what: str, kept: Callable[[], str]) -> Iterator[None]:
    """Turn a failed write inside the block into a `CheckpointError`.

    Args:
        what: the part of the message that names what was not saved.
        kept: returns the part that names what is left to resume from.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # torch's writer raises RuntimeError
        raise CheckpointError(
            f"{what}: {error}. {kept()}. Free disk space or fix the cause above, then run the same command with "
            "`--resume_from_checkpoint true`."
        ) from error


def is_resume_requested(value: str | bool | None) -> bool:
    """Whether `resume_from_checkpoint` asks to resume: any value except none, false, 0 and the empty string."""
    return str(value).lower() not in ("none", "false", "0", "")


def checkpoint_error(checkpoint: str | Path) -> str | None:
    """What is wrong with a checkpoint of transformers' `Trainer`; `None` if a run can resume from it.

    Checks the structure of each file: header and length of safetensors, directory of torch's archives, JSON. It finds
    files that are missing, empty, truncated or of another format, but not a flipped bit in the weights.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return f"the folder does not exist.{close_names(folder)}".removesuffix(".")
    state = _read_json(folder / _STATE)
    if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
        exists = (folder / _STATE).exists()
        return f"{_STATE} cannot be read" if exists else f"{_STATE} is missing: the save did not finish"
    for path in sorted(folder.iterdir()):
        error = _file_error(path)
        if error:
            return f"{path.name} {error}"
    if (folder / _DEEPSPEED).exists():
        step = folder / (folder / _DEEPSPEED).read_text(encoding="utf-8").strip()
        return None if step.is_dir() and any(step.iterdir()) else f"{step.name} is missing"
    if not any(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        return "there are no weights"
    if not any(folder.glob("optimizer*")) or not (folder / "scheduler.pt").exists():
        return "the optimizer's state is missing (no run can resume from a checkpoint saved with `save_only_model`)"
    return None if any(folder.glob("rng_state*.pth")) else "the random state is missing"


def weights_error(path: str | Path) -> str | None:
    """What is wrong with a safetensors file (an invalid header, or a length that contradicts it), or `None`."""
    try:
        with safe_open(str(path), "pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        return f"is damaged ({error})"
    return None


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint of a folder that a run can resume from; damaged ones are logged and skipped."""
    for path in reversed(_checkpoints(folder)):
        error = checkpoint_error(path)
        if error is None:
            return str(path)
        logger.warning(
            f"{path} is damaged and skipped: {error}. The steps since the previous checkpoint are repeated."
        )
    return None


def require_no_older_run(folder: str | Path, is_overwriting: bool, is_removing: bool = True) -> None:
    """Prevent a new run from sharing its folder with the checkpoints of an earlier run.

    `Trainer` identifies checkpoints by their step alone. With `save_total_limit` it would keep those of the earlier
    run and remove its own; after a kill it would resume from the earlier run.

    Args:
        folder: output folder of the new run.
        is_overwriting: remove the checkpoints of the earlier run.
        is_removing: whether this process removes them.

    Raises:
        ValueError: the folder has checkpoints and `is_overwriting` is false.
    """
    found = _checkpoints(folder)
    if found and not is_overwriting:
        raise ValueError(
            f"{folder} holds checkpoints of an earlier run ({', '.join(path.name for path in found)}), and those of a "
            "new run would be mixed with them. Resume that run (`--resume_from_checkpoint true`), choose another "
            "`output_dir`, or set `--overwrite true`, which removes them."
        )
    for path in found if is_removing else ():
        shutil.rmtree(path)


def _checkpoints(folder: str | Path) -> list[Path]:
    """Checkpoint folders, complete or not, ordered by step."""
    found = [(path, re.fullmatch(r"checkpoint-(\d+)", path.name)) for path in Path(folder).glob("checkpoint-*")]
    return sorted((path for path, match in found if match and path.is_dir()), key=lambda path: int(path.name[11:]))


def output_folder(args: TrainingArguments) -> str:
    """The output folder of a run; `TrainingArguments` sets one when none is given, contrary to its type."""
    assert args.output_dir is not None
    return args.output_dir


def checkpoint_to_resume(value: str | bool | None, folder: str | Path) -> str | None:
    """The checkpoint that `resume_from_checkpoint` refers to, or `None`.

    Args:
        value: `None` or `False`: no checkpoint. `True`: the last complete checkpoint of `folder`, if it has one.
            Otherwise the path of a checkpoint.
        folder: output folder of the run.

    Raises:
        CheckpointError: the checkpoint at the path is damaged.
    """
    if not is_resume_requested(value):
        return None
    if str(value).lower() in ("true", "1"):
        return last_complete_checkpoint(folder)
    error = checkpoint_error(str(value))
    if error is not None:
        raise CheckpointError(
            f"{value} is not a complete checkpoint: {error}. Resuming from it would change the interrupted run. "
            "Give another path, or set `resume_from_checkpoint: true`, which takes the last complete checkpoint."
        )
    return str(value)


def _file_error(path: Path) -> str | None:
    if path.suffix == ".safetensors":
        return weights_error(path)
    if path.suffix in (".pt", ".pth", ".bin"):  # torch writes zip archives, whose directory comes last
        return None if zipfile.is_zipfile(path) else "is damaged (truncated)"
    if path.name.endswith(".index.json"):
        index = _read_json(path)
        if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
            return "cannot be read"
        missing = sorted({name for name in index["weight_map"].values() if not (path.parent / name).exists()})
        return f"names {', '.join(missing)}, which is missing" if missing else None
    if path.is_dir() and path.name.startswith(("pytorch_model_fsdp", "optimizer_")):
        return None if (path / ".metadata").exists() else "is incomplete (no .metadata)"
    return None


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
