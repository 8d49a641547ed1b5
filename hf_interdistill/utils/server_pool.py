"""Several servers with one model: which of them answers, and what happens when one fails."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from .servers import KEPT, ModelServer, ServerError, ServerLostError, is_of_one_request

logger = logging.getLogger(__name__)
T = TypeVar("T")
_SECOND_CHANCE = 5.0  # seconds in which a server that was left out must answer to be used again
_PAUSE = 60.0  # seconds until it is tried again, where it has not


class NoServerLeftError(ServerLostError):
    """All servers have failed; the message has the reason of each."""


def as_urls(given: Any) -> list[Any]:
    """Addresses of servers: of a list or of a text, with commas between them."""
    parts = given if isinstance(given, list | tuple) else [given]
    urls: list[Any] = []
    for part in parts:
        urls += [url.strip() for url in part.split(",")] if isinstance(part, str) else [part]
    return urls


def check_urls(name: str, given: Any) -> None:
    """Raise `ValueError` for a setting that is neither `None` nor addresses of servers.

    Args:
        name: of the setting, for the message.
    """
    if given is None:
        return
    try:
        ModelServers(given)
    except ValueError as error:
        raise ValueError(f"`{name}`: {error}") from None


class ModelServers:
    """Servers that have the same model.

    Each prompt gets the server with the fewest prompts, and stays there, so that the server finds the prompt's
    beginning in its cache. A server that fails is left out, with a warning. The requests that it did not answer are
    sent to the others; nothing else is asked for again. The next `examine`, at the start of a call, tries it again.

    Args:
        urls: an address, or several: a list, or a text with commas between them.
        **settings: of each server, see `ModelServer`.

    Attributes:
        all: every server, in the order given.

    Raises:
        ValueError: no address, one that is none, or one that is given twice.
    """

    def __init__(self, urls: str | Sequence[str], **settings: Any):
        self.all = [ModelServer(url, **settings) for url in as_urls(urls)]
        names = [each.url for each in self.all]
        if not names:
            raise ValueError("There is no address of a server. Give one, such as `http://localhost:8000`, or several.")
        for number, name in enumerate(names):
            if name in names[:number]:
                raise ValueError(f"The server {name} is given twice. Name each server once.")
        self._seats = dict.fromkeys(self.all, 0)
        self._problems: dict[ModelServer, str] = {}
        self._next_try: dict[ModelServer, float] = {}
        self._lock = threading.Lock()
        self._drawn = random.Random()

    @property
    def left(self) -> list[ModelServer]:
        """The servers that have not failed."""
        return [each for each in self.all if each not in self._problems]

    @property
    def names(self) -> str:
        """The addresses of those, for messages."""
        return ", ".join(each.url for each in self.left)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[ModelServers]:
        """Keep connections open inside the block; see `ModelServer.connected`."""
        async with AsyncExitStack() as stack:
            for server in self.all:
                await stack.enter_async_context(server.connected())
            yield self

    def seat(self) -> Seat:
        """A prompt's place on one of the servers."""
        return Seat(self)

    async def call(self, work: Callable[[ModelServer], Awaitable[T]]) -> T:
        """What `work` returns for the server with the fewest prompts; errors as in `Seat.call`."""
        with self.seat() as seat:
            return await seat.call(work)

    @property
    def is_due(self) -> bool:
        """Whether a call should begin with `examine`: servers that were left out may be back."""
        return not self.left or any(self._is_tried_again(each) for each in self._problems)

    async def examine(
        self, work: Callable[[ModelServer], Awaitable[T]], compare: Callable[[T, T, str], str | None]
    ) -> list[T]:
        """What `work` returns for each server, the one that the others are compared with first.

        Servers for which it fails, or that differ, are left out. One that was left out before is used again; it has
        few seconds to answer, and if it does not, it is tried again after a minute at the earliest.

        Args:
            compare: called with the first result, another one and the first server's address; says what differs.

        Raises:
            ValueError, ServerError: of the only server, or because all of them fail.
        """
        if not self.left:
            self._forget(self.all)
        known = self.left
        servers = [*known, *(each for each in self.all if each not in known and self._is_tried_again(each))]
        tries = (work(each) if each in known else asyncio.wait_for(work(each), _SECOND_CHANCE) for each in servers)
        results = await asyncio.gather(*tries, return_exceptions=True)
        found, errors = dict[ModelServer, T](), dict[ModelServer, Exception]()
        for server, result in zip(servers, results, strict=True):
            if isinstance(result, ValueError | ServerError | asyncio.TimeoutError) and len(self.all) > 1:
                errors[server] = result
            elif isinstance(result, BaseException):
                raise result
            else:
                found[server] = result
        if not found:
            for server in errors:
                self._note(server, errors[server])
            message = _none_left({server: _sentence(error) for server, error in errors.items()})
            is_lost = any(isinstance(each, ServerLostError) for each in errors.values())
            raise NoServerLeftError(f"{message} {KEPT}") if is_lost else ValueError(message)
        (first, wanted), *others = found.items()
        for server, each in others:
            if difference := compare(wanted, each, first.url):
                errors[server] = ValueError(f"It {difference}. Start all with the same model and flags.")
        back = [each for each in found if each not in errors and each not in known]
        self._forget(back)
        if back:
            logger.info(f"Used again: {', '.join(each.url for each in back)}.")
        for server, error in errors.items():
            if server in known:
                self.leave_out(server, error)
            else:
                self._next_try[server] = time.monotonic() + _PAUSE
        return [found[server] for server in found if server not in errors]

    def _is_tried_again(self, server: ModelServer) -> bool:
        return time.monotonic() >= self._next_try.get(server, 0.0)

    def _forget(self, servers: Sequence[ModelServer]) -> None:
        """Use servers again that were left out."""
        with self._lock:
            for server in servers:
                self._problems.pop(server, None)
                self._next_try.pop(server, None)
                server.is_left_out = False

    def _note(self, server: ModelServer, error: Exception) -> bool:
        """Leave a server out; whether it was not yet."""
        with self._lock:
            is_new = server not in self._problems
            if is_new:
                self._problems[server] = _sentence(error)
                server.is_left_out = True
        return is_new

    def leave_out(self, server: ModelServer, error: Exception) -> None:
        """Send nothing to a server until it is examined again, and warn of it once.

        Args:
            server: one of these. error: what was wrong with it.

        Raises:
            NoServerLeftError: no other is left.
        """
        is_new = self._note(server, error)
        if not self.left:
            raise NoServerLeftError(f"{_none_left(self._problems)} {KEPT}") from error
        if is_new:
            logger.warning(
                f"The server {server.url} is left out from now on: {_sentence(error)} Its prompts continue on "
                f"{self.names}."
            )

    def place(self, current: ModelServer | None) -> ModelServer:
        """The server of a prompt: the current one if it has not failed, otherwise one with the fewest prompts."""
        with self._lock:
            if current is not None and current not in self._problems:
                return current
            left = self.left
            if not left:
                raise NoServerLeftError(f"{_none_left(self._problems)} {KEPT}")
            # Of equal ones any: several processes, each with few prompts, must not all take the first.
            chosen = min(left, key=lambda each: (self._seats[each], self._drawn.random()))
            self._seats[chosen] += 1
            return chosen

    def give_up(self, server: ModelServer) -> None:
        """Count a prompt less on a server."""
        with self._lock:
            self._seats[server] -= 1


class Seat:
    """A prompt's place on one of several servers, from its first request to `give_up`, or to the end of a `with`.

    Args:
        servers: all of them.
    """

    def __init__(self, servers: ModelServers):
        self._servers = servers
        self._server: ModelServer | None = None

    def __enter__(self) -> Seat:
        return self

    def __exit__(self, *error) -> None:
        self.give_up()

    def give_up(self) -> None:
        """Leave the place to others."""
        if self._server is not None:
            self._servers.give_up(self._server)
            self._server = None

    async def call(self, work: Callable[[ModelServer], Awaitable[T]]) -> T:
        """What `work` returns for the prompt's server; if that fails, for another one.

        Args:
            work: makes one request of a server, and reads the answer.

        Raises:
            RequestRefusedError: the server refused what it was sent. NoServerLeftError: all servers failed.
            ServerError: the only one failed.
        """
        while True:
            server = self._placed()
            try:
                return await work(server)
            except ServerError as error:
                if is_of_one_request(error) or len(self._servers.all) == 1:
                    raise
                self._servers.leave_out(server, error)

    def _placed(self) -> ModelServer:
        server = self._servers.place(self._server)
        if self._server is not None and server is not self._server:
            self._servers.give_up(self._server)
        self._server = server
        return server


def _sentence(error: Exception) -> str:
    """A message without the advice to resume, which holds when all have failed."""
    text = str(error).removesuffix(KEPT).strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _none_left(problems: dict[ModelServer, str]) -> str:
    reasons = " ".join(f"({number}) {each}" for number, each in enumerate(problems.values(), 1))
    return f"None of the {len(problems)} servers can be used. {reasons}"
