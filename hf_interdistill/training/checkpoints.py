"""Which checkpoints a run may go on from: a kill or a full disk leaves half-written ones behind."""

from __future__ import annotations

import json
import logging
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

logger = logging.getLogger(__name__)

_STATE = "trainer_state.json"  # transformers writes it last
_WEIGHTS = ("model*.safetensors", "adapter_model.safetensors", "pytorch_model*", "adapter_model.bin")
_DEEPSPEED = "latest"  # DeepSpeed's own file: weights, optimizer and schedule are in the folder that it names


class CheckpointError(OSError):
    """A checkpoint is damaged or cannot be written; the message says what to do."""


@contextmanager
def writing(what: str, kept: Callable[[], str]) -> Iterator[None]:
    """Raise `CheckpointError` with what was lost and what was kept when the block cannot write.

    Args:
        what: what is then not saved. kept: tells what can be gone on from.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # torch's writer raises RuntimeError
        raise CheckpointError(
            f"{what}: {error}. {kept()}. Make room or mend what is said above, then run the same command with "
            "`--resume_from_checkpoint true`."
        ) from error


def is_resuming(value: str | bool | None) -> bool:
    """Whether a setting `resume_from_checkpoint` asks to go on: anything but none, false and 0."""
    return str(value).lower() not in ("none", "false", "0", "")


def fault_of(checkpoint: str | Path) -> str | None:
    """What is wrong with a checkpoint of transformers' `Trainer`, or `None` if a run can go on from it.

    It looks at each file's frame (header and length of safetensors, directory of torch's archives, JSON), not at every
    byte: files that are missing, empty, cut short or no longer what their name says are found, a single turned bit in
    the weights is not.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return "there is no such folder"
    state = _read_json(folder / _STATE)
    if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
        is_there = (folder / _STATE).exists()
        return f"{_STATE} cannot be read" if is_there else f"{_STATE} is missing: the save did not end"
    for path in sorted(folder.iterdir()):
        fault = _file_fault(path)
        if fault:
            return f"{path.name} {fault}"
    if (folder / _DEEPSPEED).exists():
        step = folder / (folder / _DEEPSPEED).read_text(encoding="utf-8").strip()
        return None if step.is_dir() and any(step.iterdir()) else f"{step.name} is missing"
    if not any(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        return "there are no weights"
    if not any(folder.glob("optimizer*")) or not (folder / "scheduler.pt").exists():
        return "the optimizer's state is missing (with `save_only_model` a run cannot go on)"
    return None if any(folder.glob("rng_state*.pth")) else "the random state is missing"


def weights_fault(path: str | Path) -> str | None:
    """What is wrong with a safetensors file: its header, or a length other than the header's; `None` if nothing."""
    try:
        with safe_open(str(path), "pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        return f"is damaged ({error})"
    return None


def last_whole_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint of a folder that a run can go on from; damaged ones are named and passed over."""
    for path in reversed(_checkpoints(folder)):
        fault = fault_of(path)
        if fault is None:
            return str(path)
        logger.warning(f"{path} is damaged and passed over: {fault}. The steps after the one before it are repeated.")
    return None


def require_no_older_run(folder: str | Path, is_overwriting: bool, is_removing: bool = True) -> None:
    """Keep a run that starts anew apart from an older one in its folder.

    `Trainer` tells checkpoints apart by their step alone: with `save_total_limit` it would keep an older run's and
    remove its own, and after a kill it would go on from the older run's.

    Args:
        folder: where the run will save. is_overwriting: remove the older run's checkpoints.
        is_removing: whether this process is the one that removes them.

    Raises:
        ValueError: there are checkpoints, and they are not to be removed.
    """
    found = _checkpoints(folder)
    if found and not is_overwriting:
        raise ValueError(
            f"{folder} holds checkpoints of an earlier run ({', '.join(path.name for path in found)}), and those of a "
            "new run would be mixed with them. Go on with that run (`--resume_from_checkpoint true`), choose another "
            "`output_dir`, or set `--overwrite true`, which removes them."
        )
    for path in found if is_removing else ():
        shutil.rmtree(path)


def _checkpoints(folder: str | Path) -> list[Path]:
    """Checkpoints of a folder, whole or not, by their steps."""
    found = [(path, re.fullmatch(r"checkpoint-(\d+)", path.name)) for path in Path(folder).glob("checkpoint-*")]
    return sorted((path for path, match in found if match and path.is_dir()), key=lambda path: int(path.name[11:]))


def checkpoint_to_resume(value: str | bool | None, folder: str | Path) -> str | None:
    """The checkpoint that a setting `resume_from_checkpoint` means.

    Args:
        value: `None` or `False`; `True`, the last whole checkpoint of `folder`, if there is one; or a path.

    Raises:
        CheckpointError: the path is of a damaged checkpoint.
    """
    if not is_resuming(value):
        return None
    if str(value).lower() in ("true", "1"):
        return last_whole_checkpoint(folder)
    fault = fault_of(value)
    if fault is not None:
        raise CheckpointError(
            f"{value} is no whole checkpoint: {fault}. Training on from it would not be the run that was interrupted. "
            "Name another one, or set `resume_from_checkpoint: true`, which takes the last whole one."
        )
    return str(value)


def _file_fault(path: Path) -> str | None:
    if path.suffix == ".safetensors":
        return weights_fault(path)
    if path.suffix in (".pt", ".pth", ".bin"):  # torch writes zip archives, whose directory comes last
        return None if zipfile.is_zipfile(path) else "is damaged (cut short)"
    if path.name.endswith(".index.json"):
        index = _read_json(path)
        if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
            return "cannot be read"
        lost = sorted({name for name in index["weight_map"].values() if not (path.parent / name).exists()})
        return f"names {', '.join(lost)}, which is not there" if lost else None
    if path.is_dir() and path.name.startswith(("pytorch_model_fsdp", "optimizer_")):
        return None if (path / ".metadata").exists() else "is not whole (no .metadata)"
    return None


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
