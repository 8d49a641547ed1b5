"""The command that is running, as the footer of a page shows it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from ..privacy import public_word

_words: ContextVar[tuple[str, ...]] = ContextVar("command", default=())


@contextmanager
def running(words: Sequence[str]) -> Iterator[None]:
    """Pages that are written meanwhile name this command.

    Args:
        words: of the command line, `interdistill` first.
    """
    token = _words.set(tuple(words))
    try:
        yield
    finally:
        _words.reset(token)


def shown_command() -> str | None:
    """The running command as it may be published, without tokens and folders of this machine; `None` in Python."""
    words = _words.get()
    return shlex.join(public_word(word) for word in words) if words else None
