"""Ways to run, kill and limit commands at a spot of one's choice."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from hf_interdistill.cli import main
from hf_interdistill.interaction.teacher import stages as teacher_stages

GO_ON = ["--resume_from_checkpoint", "true"]


def forked(action: Callable[[], int | None], seconds: int = 120) -> tuple[int, str]:
    """Run something in a process of its own that may be killed or limited.

    A fork costs no import. It is safe here: one thread, and on the CPU autograd starts none of its own.

    Returns:
        The exit status, or minus the signal that ended it; and what was printed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(seconds)
            os.close(reading)
            sys.stdout = sys.stderr = os.fdopen(writing, "w")  # not a file, which could be too large for a limit
            torch.set_num_threads(1)
            status = action() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as output:
        printed = output.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), printed


def killed(command: list[str], spot: Callable[[], None]) -> None:
    """Run a command in a process of its own that `spot` arranges to kill, as `kill -9` does."""

    def action():
        spot()
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
