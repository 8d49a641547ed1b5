"""Commands that are killed, or that run out of disk space, at a chosen moment."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

from hf_interdistill.cli import main
from hf_interdistill.interaction.teacher import stages as teacher_stages
from support.processes import forked

RESUME = ["--resume_from_checkpoint", "true"]


def killed(command: list[str], arrange: Callable[[], None]) -> None:
    """Run a command in a process of its own that `arrange` prepares to be killed, as `kill -9` does."""

    def action():
        arrange()
        return main(command)

    status, printed = forked(action)
    assert status == -signal.SIGKILL, f"it ended with {status} before it could be killed: {printed[-3000:]}"


def kill_now(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def at_step(step: int, folder: str = "") -> None:
    """Kill a training, of a run whose output folder ends so, when a step has ended and before anything is saved."""
    from transformers.trainer_callback import CallbackHandler

    original = CallbackHandler.on_step_end

    def counted(self, args, state, control):
        if state.global_step == step and args.output_dir.endswith(folder):
            kill_now()
        return original(self, args, state, control)

    CallbackHandler.on_step_end = counted


def at_call(owner, name: str, number: int, action: Callable = kill_now, *, is_after: bool = False) -> None:
    """Replace a function so that its call with this number (from 1) does something else, or something after it."""
    original, calls = getattr(owner, name), [0]

    def counted(*args, **kwargs):
        calls[0] += 1
        if calls[0] != number:
            return original(*args, **kwargs)
        if is_after:
            original(*args, **kwargs)
        return action(*args, **kwargs)

    setattr(owner, name, counted)


def limit_files(size: int) -> None:
    """No file may grow beyond this: writing fails in mid-file, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def teacher_steps(monkeypatch) -> list[str]:
    """The folder names of the stages whose training steps are made from now on."""
    steps = []
    original = teacher_stages._StageTrainer.training_step

    def counted(self, *args, **kwargs):
        steps.append(Path(self.args.output_dir).name)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(teacher_stages._StageTrainer, "training_step", counted)
    return steps
