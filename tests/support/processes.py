"""Other processes: a fork that a test may kill or limit, and commands in two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable

import torch

from support.datasets import ROOT

# `accelerate launch --cpu --num_processes 2` would start one process (two need MPI): the recipe's launcher starts two.
ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--config_file", str(ROOT / "recipes" / "accelerate_configs" / "ddp.yaml")),
    *("--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"),
)


def launched(commands: list[list[str]], *launcher: str, **environment) -> subprocess.CompletedProcess:
    """Run commands one after the other in two processes, as `accelerate launch` starts them."""
    return subprocess.run(
        [
            sys.executable,
            *ACCELERATE,
            *launcher,
            str(ROOT / "tests" / "support" / "run_commands.py"),
            json.dumps(commands),
        ],
        env=environment_with(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )


def environment_with(**more) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}


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
