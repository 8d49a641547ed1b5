"""Errors that end a run and say what to do; the command line shows them without a traceback."""

from __future__ import annotations

import errno

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunError(RuntimeError):
    """Something outside this package failed during a run."""


def recovery_hint(error: BaseException) -> str:
    """Advice to add to the message of an error of the operating system."""
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return (
            ". There is no room to write. What was finished is kept: make room, then run the same command again "
            "(training with `--resume_from_checkpoint true`)."
        )
    return ""


def escape_half_characters(message: str) -> str:
    """A message that can be written as UTF-8: surrogates that stand alone are shown by their number."""
    return message.encode("utf-8", "backslashreplace").decode("utf-8")
