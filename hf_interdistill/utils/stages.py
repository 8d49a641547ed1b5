"""One line on the terminal for each stage of a long job, and everything else in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from rich.console import Console
from rich.text import Text

_LINES_OF_LOG = 15  # that are shown of a failed stage


class Stages:
    """Announces stages as `[2/7] fit the teacher ... 93 s`, and sends what they print to a file.

    What libraries and subprocesses write to standard output and standard error is caught at the file descriptors, and
    what Python writes elsewhere (in a notebook) at `sys.stdout` and `sys.stderr`.

    Args:
        log: the file; what an earlier run wrote is lost. count: the number of stages. is_shown: whether there are
            lines on the terminal.
    """

    def __init__(self, log: Path, count: int, *, is_shown: bool = True):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")
        self._is_terminal = _writes_to(sys.stdout, 1)
        if self._is_terminal:
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # so that the log keeps the order
        self.log, self.count, self.number = log, count, 0
        file = os.fdopen(os.dup(1), "w") if self._is_terminal else sys.stdout
        self.console = Console(file=file, highlight=False, markup=False, emoji=False, quiet=not is_shown)

    @contextmanager
    def stage(self, title: str, *, is_log_shown: bool = True) -> Iterator[list[str]]:
        """Run a block as a stage. Yields a list; its entries are shown on the stage's line.

        Args:
            title: what is done. is_log_shown: print the end of the log if the block fails, before the error is raised;
                without it the error says enough.
        """
        self.number += 1
        notes: list[str] = []
        start = time.monotonic()
        with self.console.status(Text(f"[{self.number}/{self.count}] {title} ...")):
            try:
                with self._redirected():
                    yield notes
            except BaseException:
                if not is_log_shown:
                    raise
                self.console.print(f"[{self.number}/{self.count}] {title}: failed. The end of {self.log}:")
                lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES_OF_LOG:]
                self.console.print("\n".join(lines))
                raise
        told = "".join(f", {note}" for note in notes)
        line = f"[{self.number}/{self.count}] {title}: {time.monotonic() - start:.0f} s{told}"
        self.console.print(line, soft_wrap=True)

    @contextmanager
    def _redirected(self) -> Iterator[None]:
        with self.log.open("a", encoding="utf-8", buffering=1) as file:
            if not self._is_terminal:
                with redirect_stdout(file), redirect_stderr(file):
                    yield
                return
            kept = [os.dup(1), os.dup(2)]
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


def _writes_to(stream, descriptor: int) -> bool:
    """Whether a Python stream is the process's own, not one that a notebook or a test put in its place."""
    try:
        return stream.fileno() == descriptor and hasattr(stream, "reconfigure")
    except (AttributeError, OSError, ValueError):
        return False


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
