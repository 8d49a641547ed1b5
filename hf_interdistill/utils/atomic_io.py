"""Writes that survive a kill or a power cut: a file holds its old content or its new content, never a part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def truncate_partial_line(path: Path) -> None:
    """Truncate a file of lines after its last complete line: a kill may have left a part of a line."""
    with path.open("r+b") as file:
        if not file.seek(0, os.SEEK_END):
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        os.fsync(file.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content in one step."""
    with atomic_replacement(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


@contextmanager
def atomic_replacement(path: Path) -> Iterator[Path]:
    """A scratch file to write; it replaces `path` in one step when the block ends without an error."""
    scratch = path.with_name(path.name + ".tmp")
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def require_writable(option: str, folder: str, loss: str) -> None:
    """Raise `PermissionError` if a folder is not writable.

    Args:
        option: name of the option, for the message.
        folder: created if missing.
        loss: what would be lost, for the message.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".is_writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have removed it
    except OSError as error:
        raise PermissionError(
            f"`{option}` {folder!r} cannot be written ({error.strerror or error}); {loss}. "
            "Choose another folder or change its permissions."
        ) from error


def require_writable_file(option: str, file: str | Path, loss: str) -> None:
    """Raise an error if a file cannot be written: `PermissionError` for its folder, `ValueError` if it is a folder.

    Args:
        option: name of the option, for the message.
        file: its folder is created if missing.
        loss: what would be lost, for the message.
    """
    require_writable(option, str(Path(file).parent), loss)
    if Path(file).is_dir():
        raise ValueError(f"`{option}` is {str(file)!r}, a folder, but must be a file. Name a file in it.")
