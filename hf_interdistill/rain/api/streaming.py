"""What a streamer is told when `generate` fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def ended_on_error(streamer: Any) -> Iterator[None]:
    """Call `streamer.end()` if the block raises: a `TextIteratorStreamer` lets its consumer wait until then.

    Args:
        streamer: of the call; `None` if it has none.
    """
    try:
        yield
    except BaseException:
        if streamer is not None:
            streamer.end()
        raise
