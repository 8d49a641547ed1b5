"""Other processes: forks that a test may kill or limit, and commands in two processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

import torch

from support.datasets import ROOT

CONFIGS = ROOT / "recipes" / "accelerate_configs"
TWO = ("--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0")


def launched(commands: list[list[str]], *launcher: str, **environment) -> subprocess.CompletedProcess:
    """Run commands one after the other in two processes, as `accelerate launch` starts them."""
    return _launched("ddp", *launcher, "--module", "support.run_commands", json.dumps(commands), **environment)


def launched_sharded(config: str, commands: list[list[str]], refused: list[list[str]]) -> subprocess.CompletedProcess:
    """The same with another of the accelerate configs, and after it commands that must be refused."""
    arguments = ("--module", "support.run_sharded", json.dumps(commands), json.dumps(refused))
    return _launched(config, *arguments, ACCELERATE_USE_CPU="false")  # with it accelerate passes DeepSpeed over


def _launched(config: str, *arguments: str, **environment) -> subprocess.CompletedProcess:
    # `accelerate launch --cpu --num_processes 2` would start one process (two need MPI); a config file starts two.
    launcher = ("-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml"), *TWO)
    return subprocess.run(
        [sys.executable, *launcher, *arguments],
        env=environment_with(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )


def environment_with(**more) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}


class Fork:
    """A copy of this process that runs something, and that a test may kill or limit.

    A number that it returns is its exit status. A fork costs no import. It is safe here: there is one thread, and on
    the CPU autograd starts none of its own.
    """

    def __init__(self, action: Callable[[], object], seconds: int = 120):
        reading, writing = os.pipe()
        self.pid, self.status = os.fork(), None
        if self.pid == 0:
            os.close(reading)
            _run(action, seconds, writing)
        os.close(writing)
        self.output = os.fdopen(reading, errors="replace")

    def is_running(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is None

    def finish(self) -> tuple[int, str]:
        """Wait for its end.

        Returns:
            The exit status, or minus the signal that ended it; and what was printed.
        """
        with self.output:
            printed = self.output.read()
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status, printed


def _run(action: Callable[[], object], seconds: int, output: int) -> NoReturn:
    status = 1
    try:
        signal.alarm(seconds)
        sys.stdout = sys.stderr = os.fdopen(output, "w")  # not a file, which could be too large for a limit
        torch.set_num_threads(1)
        result = action()
        status = result if isinstance(result, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def forked(action: Callable[[], object], seconds: int = 120) -> tuple[int, str]:
    """Run something in a fork: its exit status, or minus the signal that ended it, and what was printed."""
    return Fork(action, seconds).finish()


def killed_when(is_time: Callable[[], bool], action: Callable[[], object], seconds: int = 120) -> None:
    """Run something in a fork and kill it, as `kill -9` does, as soon as the time has come."""
    fork = Fork(action, seconds)
    while not is_time():
        assert fork.is_running(), f"it ended before it could be killed: {fork.finish()}"
        time.sleep(0.01)
    os.kill(fork.pid, signal.SIGKILL)
    status, printed = fork.finish()
    assert status == -signal.SIGKILL, printed


def forked_ranks(count: int, action: Callable[[], None], **environment: str) -> list[str]:
    """Run the same in several forks that torch.distributed knows as one job; returns what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}

    def as_rank(rank: int) -> None:
        os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank))
        action()

    forks = [Fork(lambda rank=rank: as_rank(rank)) for rank in range(count)]
    ended = [fork.finish() for fork in forks]
    assert [status for status, _ in ended] == [0] * count, "\n".join(printed[-3000:] for _, printed in ended)
    return [printed for _, printed in ended]
