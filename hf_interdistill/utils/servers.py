"""Requests to a model server over HTTP: retries with backoff, time limits, and messages that say what to do."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from .errors import RunError
from .fields import require_above_zero

_RETRIED = (408, 409, 425, 429)  # beside all from 500 on
_OF_THE_CONTENT = (400, 413, 422)  # not a missing model or key
_LONGEST_WAIT = 30.0  # seconds between two tries
_CONNECTIONS = 512
INTERDISTILL_KEY, VLLM_KEY = "INTERDISTILL_TOKEN", "VLLM_API_KEY"  # variables of the environment
_JSON = {"Content-Type": "application/json"}
_TOO_SLOW = "Raise `timeout`, or send less at a time (`batch_size`, of searches `max_batch_size`)."
_NOT_THERE = "Start it (`vllm serve MODEL`, for rewards also `interdistill serve`), or correct the address."
_BROKEN = "Its log says why."
KEPT = "Finished results are kept: run the same command again to resume."


class ServerError(RunError):
    """No result of a server, for one of the reasons below.

    Attributes:
        records: of a search on a server, what each prompt had committed when it failed.
        rewards: of texts to score, those that had been answered, and `None` for each other one.
    """

    records: Sequence[Any] = ()
    rewards: Sequence[float | None] = ()


class ServerLostError(ServerError, ConnectionError):
    """A server could not be reached, or failed, in all tries."""


class BadAnswerError(ServerError, ValueError):
    """A server gave an answer that cannot be used."""


class RequestRefusedError(ServerError, ValueError):
    """A server refused a request; trying again does not help.

    Attributes:
        status: the HTTP status. reason: what the server said.
    """

    def __init__(self, message: str, status: int, reason: str):
        super().__init__(message)
        self.status, self.reason = status, reason


class TokenRefusedError(RequestRefusedError, PermissionError):
    """A server wants another token, or any."""


def is_of_one_request(error: BaseException) -> bool:
    """Whether a server refused what it was sent, so that it may well answer other requests."""
    return isinstance(error, RequestRefusedError) and error.status in _OF_THE_CONTENT


class ModelServer:
    """A server of models, such as vLLM's.

    Args:
        url: its address, `http://host:port`; a final `/v1` is taken as part of it.
        api_key: sent as a bearer token; by default that in the environment's variable `key_variable`, if there is one.
        timeout: seconds that a try may take, with the wait for a free place on the server.
        retries: further tries after a failure: no connection, no answer in time, a broken answer, status 5xx or 429.
        backoff: seconds before the first retry; doubled before each further one, up to 30. Each wait is shortened at
            random, by half at most, but is as long as the server's `Retry-After` says, within `timeout`.
        key_variable: see `api_key`.

    Proxies and `.netrc` of the environment hold for servers on other machines.

    Attributes:
        is_left_out: no further tries are made: another server takes the request.

    Raises:
        ValueError: no address, or numbers out of range.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 300.0,
        retries: int = 5,
        backoff: float = 0.5,
        key_variable: str = VLLM_KEY,
    ):
        host = _host_of(url)
        if host is None:
            raise ValueError(f"The server is {url!r}, but must be an address such as `http://localhost:8000`.")
        require_above_zero("timeout", timeout)
        for name, value in (("retries", retries), ("backoff", backoff)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"`{name}` is {value!r}, but must be 0 or a positive number.")
        self.url = url.rstrip("/").removesuffix("/v1").rstrip("/")
        self.timeout, self.retries, self.backoff = float(timeout), int(retries), float(backoff)
        self._api_key = os.environ.get(key_variable, "").strip() if api_key is None else api_key
        self.is_left_out = False
        self._uses_proxies = not is_loopback(host)
        self._sessions: dict[asyncio.AbstractEventLoop, Any] = {}

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[ModelServer]:
        """Keep connections open inside the block; requests are made inside one. Blocks of one event loop nest."""
        import aiohttp

        loop = asyncio.get_running_loop()
        if loop in self._sessions:
            yield self
            return
        headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        async with aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=self.timeout),
            trust_env=self._uses_proxies,
        ) as session:
            self._sessions[loop] = session
            try:
                yield self
            finally:
                del self._sessions[loop]

    async def get(self, path: str, *, retries: int | None = None) -> Any:
        """The JSON answer to a GET request; errors as in `post`."""
        return await self._request("GET", path, None, retries)

    async def post(self, path: str, body: dict[str, Any], *, retries: int | None = None) -> Any:
        """The JSON answer to a request.

        Args:
            path: from the root of the server, with a slash. body: sent as JSON.
            retries: another number than the server's.

        Raises:
            RequestRefusedError: status 4xx, `TokenRefusedError` for 401 and 403.
            ServerLostError: no answer in all tries, or status 5xx or 429. BadAnswerError: the last one was no JSON.
            ValueError: a body that cannot be sent as JSON.
        """
        return await self._request("POST", path, body, retries)

    async def _request(self, method: str, path: str, body: dict[str, Any] | None, retries: int | None) -> Any:
        import aiohttp

        session = self._sessions[asyncio.get_running_loop()]
        content = None if body is None else _as_json(body)
        tries = 1 + (self.retries if retries is None else retries)
        error_class: type[ServerError] = ServerLostError
        problem = fix = ""
        asked_wait = 0.0  # by the server
        made = 0
        while made < tries:
            if made:
                wait = min(_LONGEST_WAIT, self.backoff * 2 ** (made - 1)) * random.uniform(0.5, 1)
                await _pause(max(wait, min(asked_wait, self.timeout)))
                if self.is_left_out:
                    break
            made += 1
            error_class, asked_wait = ServerLostError, 0.0
            try:
                async with session.request(method, self.url + path, data=content, headers=_JSON) as response:
                    text = await response.text(errors="replace")
                    status, wanted = response.status, response.headers.get("Retry-After", "")
            except asyncio.TimeoutError:
                problem, fix = f"did not answer within {self.timeout:g} seconds", _TOO_SLOW
                continue
            except aiohttp.ClientError as error:
                reason = f"{type(error).__name__}: {error}"
                problem, fix = f"could not be reached, or cut the connection ({reason})", _NOT_THERE
                continue
            if status < 300:
                try:
                    return json.loads(text)
                except ValueError:
                    error_class = BadAnswerError
                    problem, fix = f"answered with what is not JSON ({text[:80]!r})", _NOT_THERE
                    continue
            reason = _reason(text)
            if status < 500 and status not in _RETRIED:
                refused = TokenRefusedError if status in (401, 403) else RequestRefusedError
                raise refused(f"{self.url}{path} refused a request ({status}): {reason}", status, reason)
            problem, fix = f"failed ({status}: {reason})", _BROKEN
            asked_wait = float(wanted) if wanted.isdecimal() else 0.0
        times = "once" if made == 1 else f"{made} times"
        raise error_class(f"The server {self.url} {problem}; {path} was tried {times}. {fix} {KEPT}")


def _host_of(url: Any) -> str | None:
    """The host of an address, `None` if it is none."""
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        is_address = parts is not None and parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:  # a port that is not a number, or too large
        return None
    return parts.hostname or None if parts is not None and is_address else None


async def _pause(seconds: float) -> None:
    await asyncio.sleep(seconds)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _as_json(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"The rows cannot be sent as JSON: {error}. Give plain texts, lists and dicts.") from None


def _reason(text: str) -> str:
    """What an answer with an error status says, in one line."""
    try:
        content = json.loads(text)
        found = content.get("error", content) if isinstance(content, dict) else content
        message = found.get("message", found) if isinstance(found, dict) else found
    except ValueError:
        message = text
    return " ".join(str(message).split())[:400]
