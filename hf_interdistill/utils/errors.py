"""Errors that end a run and say themselves what to do; the command line shows them without a traceback."""

from __future__ import annotations

import errno

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunError(RuntimeError):
    """Something outside this package failed in the middle of a run."""


def what_to_do(error: BaseException) -> str:
    """What to add to an error's message, for those that come from the system."""
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return (
            ". There is no room to write. What was finished is kept: make room, then run the same command again "
            "(training with `--resume_from_checkpoint true`)."
        )
    return ""
