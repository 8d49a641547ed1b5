"""A lock on a file that is written: no second process writes there at the same time."""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)


class FileLock:
    """The lock of an output, held through `OUTPUT.lock`. The system releases it when its process ends, even by a kill.

    Args:
        output: the file that it stands for.
    """

    def __init__(self, output: Path):
        self.output, self._path = output, output.with_name(f"{output.name}.lock")
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock, unless it is held by this object already.

        Raises:
            ValueError: another process holds it, or another job of this process.
        """
        while self._file is None:
            file = self._path.open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise ValueError(
                    f"{self.output} is being written by another process, and two at once would write each row twice. "
                    "Wait for it or end it, or choose another output."
                ) from None
            except OSError as error:
                logger.warning(
                    f"The file system of {self.output} has no locks ({error.strerror}). Start no second job with this "
                    "output while this one runs."
                )
            if self._is_current(file):
                self._file = file
            else:  # its last holder removed it after it was opened here
                file.close()

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _is_current(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False
