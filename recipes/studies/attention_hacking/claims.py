"""Locks by which several processes share the runs of a study."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def claim(path: Path, *, is_waiting: bool) -> Iterator[bool]:
    """Whether the lock is this process's own while the block runs; a process that dies lets it go.

    Args:
        path: of the lock, made if it is not there; on a folder that all the processes see.
        is_waiting: wait for the lock instead of going without it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if is_waiting else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
