"""One line on the terminal for each stage of a long job, and everything else in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text


class Stages:
    """Announces stages as `[2/7] fit the teacher ... 93 s`, and sends what they print to a file.

    What libraries and subprocesses write to standard output and standard error is caught at the file descriptors.

    Args:
        log: the file; what an earlier run wrote is lost. count: the number of stages.
    """

    def __init__(self, log: Path, count: int):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")
        sys.stdout.reconfigure(line_buffering=True)  # so that the log keeps the order
        self.log, self.count, self.number = log, count, 0
        self.console = Console(file=os.fdopen(os.dup(1), "w"), highlight=False, markup=False, emoji=False)

    @contextmanager
    def stage(self, title: str) -> Iterator[list[str]]:
        """Run a block as a stage. Yields a list; what is put in it stands on the stage's line.

        If the block fails, the end of the log is printed before the error is raised.
        """
        self.number += 1
        notes: list[str] = []
        start = time.monotonic()
        with self.console.status(Text(f"[{self.number}/{self.count}] {title} ...")):
            try:
                with self._redirected():
                    yield notes
            except BaseException:
                self.console.print(f"[{self.number}/{self.count}] {title}: failed. The end of {self.log}:")
                lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
                self.console.print("\n".join(lines))
                raise
        told = "".join(f", {note}" for note in notes)
        line = f"[{self.number}/{self.count}] {title}: {time.monotonic() - start:.0f} s{told}"
        self.console.print(line, soft_wrap=True)

    @contextmanager
    def _redirected(self) -> Iterator[None]:
        kept = [os.dup(1), os.dup(2)]
        with self.log.open("a") as file:
            _flush()
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            try:
                yield
            finally:
                _flush()
                for number, descriptor in enumerate(kept, 1):
                    os.dup2(descriptor, number)
                    os.close(descriptor)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
