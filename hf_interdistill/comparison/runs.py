"""Trainings, each a command in its own process and folder; finished ones are not trained again."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..utils.atomic_io import require_writable, write_atomically
from ..utils.changed_fields import describe_change
from ..utils.child_process import run_child
from ..utils.errors import RunError

_RECORD, _RECIPE, _LOG = "run.json", "recipe.yaml", "train.log"


@dataclass(frozen=True)
class Training:
    """One training that a comparison needs.

    Args:
        command: `reward` or `teacher`. folder: of the finished model.
        settings: keys of the command, without `output_dir`. digests: of what settings only name (data, models).
        launcher: words between Python and the command's module, such as those of `accelerate launch`.
    """

    command: str
    folder: Path
    settings: dict[str, Any]
    digests: dict[str, str]
    launcher: tuple[str, ...] = ()

    @property
    def is_finished(self) -> bool:
        record = self._record()
        return record is not None and bool(record.get("finished")) and self._change(record) is None

    def check(self, is_overwriting: bool) -> None:
        """Compare with an earlier training in the folder; with `is_overwriting` it may be one of other settings.

        Raises:
            ValueError: there is one that was made with other settings or data, or files that are not of a training.
        """
        record = self._record()
        if record is None:
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise ValueError(
                    f"{self.folder} holds files, but not the record of a training ({_RECORD}). Choose another "
                    "`output`, or remove that folder."
                )
            return
        change = self._change(record)
        if change is None:
            return
        if not is_overwriting:
            raise ValueError(
                f"{self.folder} was trained with other settings or data: {change} Choose another `output`, or set "
                "`overwrite: true`, which trains it again."
            )

    def run(self, lock: int) -> None:
        """Train, or resume an interrupted training; one of other settings, which `check` has allowed, is removed.

        Args:
            lock: file descriptor of the comparison's lock, which the process keeps as long as it lives.

        Raises:
            RunError: the training failed; the message has the command's own error.
        """
        record = self._record() or self._fresh_record()
        if self._change(record) is not None:
            shutil.rmtree(self.folder)
            record = self._fresh_record()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / _RECORD, json.dumps({**record, "starts": record["starts"] + 1}, indent=2))
        recipe = yaml.safe_dump({**self.settings, "output_dir": str(self.folder)}, sort_keys=False, allow_unicode=True)
        write_atomically(self.folder / _RECIPE, recipe)
        module = (*self.launcher, "-m", "hf_interdistill.cli", self.command)
        words = [sys.executable, *module, "--config", str(self.folder / _RECIPE), "--resume_from_checkpoint", "true"]
        status = start(words, self.folder / _LOG, lock)
        text = (self.folder / _LOG).read_text(encoding="utf-8", errors="replace")
        print(text)  # for the log of the comparison
        if status:
            raise RunError(self._failure(status, text))
        for checkpoint in self.folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        record = self._record() or self._fresh_record()
        write_atomically(self.folder / _RECORD, json.dumps({**record, "finished": True}, indent=2))

    def costs(self) -> dict[str, Any]:
        """Time and memory of a finished `reward` training (see `commands/reward.py`)."""
        return _read_json(self.folder / "train_results.json") or {}

    def was_interrupted(self) -> bool:
        return (self._record() or {}).get("starts", 1) > 1

    def explained(self) -> float | None:
        """The share of the teacher's map that the student has learnt, by the last evaluation, else the last steps."""
        history = (_read_json(self.folder / "trainer_state.json") or {}).get("log_history", [])
        for key in ("eval_interaction/explained", "interaction/explained"):
            found = [row[key] for row in history if row.get(key) is not None]
            if found:
                return float(found[-1])
        return None

    def _fresh_record(self) -> dict[str, Any]:
        return {"command": self.command, "settings": self.settings, "digests": self.digests, "starts": 0}

    def _record(self) -> dict[str, Any] | None:
        return _read_json(self.folder / _RECORD)

    def _change(self, record: dict[str, Any]) -> str | None:
        now = json.loads(json.dumps({"settings": self.settings, "digests": self.digests}))
        for part in ("settings", "digests"):
            old, new = record.get(part, {}), now[part]
            if change := describe_change(old, new, sorted({*old, *new})):
                return change
        return None

    def _failure(self, status: int, text: str) -> str:
        lines = [line for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if re.match(rf"interdistill {self.command}: error: ", line)]
        reason = (errors or lines or ["it printed nothing"])[-1].partition(": error: ")
        what = f"it was ended by signal {-status}" if status < 0 else (reason[2] or reason[0])
        return (
            f"The training in {self.folder} failed: {what} (All that it printed is in {self.folder / _LOG}.) "
            "Finished work is kept, and the same command resumes there."
        )


def start(words: Sequence[str], log: Path, lock: int) -> int:
    """Run a command in its own process, which keeps a lock and writes to a file; see `run_child`."""
    with log.open("w", encoding="utf-8") as file:
        return run_child(words, stdout=file, stderr=subprocess.STDOUT, pass_fds=[lock])


@contextmanager
def locked(folder: str) -> Iterator[int]:
    """The lock of a comparison's folder; its trainings hold it too, so no second command starts beside a training that
    outlives a kill.

    Raises:
        ValueError: another process holds it.
    """
    require_writable("output", folder, "the comparison would be lost")
    with (Path(folder) / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"`output` is {folder!r}, where another comparison, or a training that it started, is running. Wait "
                "for it or end it, or choose another `output`."
            ) from None
        yield file.fileno()


def refuse_launched() -> None:
    """Raise `ValueError` if this process is one of several that a launcher started."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"The comparison was started in {os.environ['WORLD_SIZE']} processes, but it starts those of each "
            "training itself. Start it once, and set `num_processes` or `accelerate_config`."
        )


def time_left(seconds: Sequence[float], missing: int) -> str | None:
    """The estimate of the remaining time on the line of a training, from the time of the others."""
    if not seconds or not missing:
        return None
    left = missing * sum(seconds) / len(seconds)
    return f"about {left / 60:.0f} min of training left" if left >= 90 else f"about {left:.0f} s of training left"


class Clock:
    """How long the trainings of this call took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds.append(time.monotonic() - start)


def _read_json(path: Path) -> Any:
    """Content of a JSON file, `None` if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with some changed; `None` removes one."""
    return {key: value for key, value in {**settings, **changes}.items() if value is not None or key not in changes}
