"""The HTTP side of a server: routes, token, limits, errors. The rest is in `formats` and `queue`."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..scoring.ensemble import RewardEnsemble
from ..scoring.opening import LocalScorer
from ..utils.errors import escape_half_characters
from .formats import Formats, Job, UnknownModelError
from .queue import QueueFullError, RequestTooLargeError, Scored, ScoringError, ScoringQueue

logger = logging.getLogger(__name__)

_CLIENT_LEFT = 499  # as nginx counts it; nobody reads the answer


@dataclass(frozen=True)
class Limits:
    """What a server takes at most.

    Args:
        max_batch_tokens: tokens of a batch, with its padding.
        max_queue: rows that may wait.
        max_wait: seconds that the first row waits for others.
        timeout: seconds until a request is answered with an error.
        max_body: bytes of a request.
    """

    max_batch_tokens: int = 16384
    max_queue: int = 4096
    max_wait: float = 0.005
    timeout: float = 120.0
    max_body: int = 8 * 2**20


class RewardApp:
    """The ASGI application of one scorer.

    Args:
        scorer: what scores; used by the thread of the queue alone from here on.
        model_name: its name in answers.
        token: the value that `Authorization: Bearer` must have; `None` for open access.
        limits: see `Limits`.

    Attributes:
        asgi: the application. queue: its queue, closed at the end of its lifespan.
    """

    def __init__(
        self, scorer: LocalScorer, model_name: str, *, token: str | None = None, limits: Limits | None = None
    ):
        if isinstance(scorer, RewardEnsemble):
            scorer.reading_members("A server")
        self.limits = limits or Limits()
        self.queue = ScoringQueue(
            scorer,
            max_batch_tokens=self.limits.max_batch_tokens,
            max_rows=self.limits.max_queue,
            max_wait=self.limits.max_wait,
        )
        self._token = None if token is None else token.encode()
        self._formats = formats = Formats(scorer, model_name)
        posts: dict[str, Callable[[Any], Job]] = {
            "/score": formats.score,
            "/get_reward": formats.get_reward,
            "/remote_rm": formats.remote_rm,
            "/classify": formats.classify,
            "/v1/classify": formats.classify,
            "/v1/embeddings": formats.embeddings,
            "/pooling": formats.pooling,
            "/tokenize": formats.tokenize,
        }
        routes = [Route(path, self._endpoint(path, read), methods=["POST"]) for path, read in posts.items()]
        routes += [Route("/health", self._health), Route("/metrics", self._metrics), Route("/v1/models", self._models)]
        handlers = {HTTPException: _http_error}
        self.asgi = Starlette(routes=routes, lifespan=self._lifespan, exception_handlers=handlers)  # type: ignore[arg-type]

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self.queue.close)

    async def _health(self, request: Request) -> Response:
        is_alive = self.queue.is_alive
        return JSONResponse({"status": "ok" if is_alive else "stopped"}, status_code=200 if is_alive else 503)

    async def _metrics(self, request: Request) -> Response:
        self._authorize(request)
        return Response(generate_latest(self.queue.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _models(self, request: Request) -> Response:
        self._authorize(request)
        return JSONResponse(self._formats.models())

    def _endpoint(self, path: str, read: Callable[[Any], Job]) -> Callable[[Request], Awaitable[Response]]:
        metrics = self.queue.metrics

        async def endpoint(request: Request) -> Response:
            start = time.monotonic()
            response = await self._answer(request, read)
            metrics.seconds.labels(path).observe(time.monotonic() - start)
            metrics.requests.labels(path, str(response.status_code)).inc()
            return response

        return endpoint

    async def _answer(self, request: Request, read: Callable[[Any], Job]) -> Response:
        try:
            self._authorize(request)
            job = read(await asyncio.wait_for(self._body(request), self.limits.timeout))
            return JSONResponse(job.answer(await self._scored(request, job)))
        except HTTPException as error:
            return await _http_error(request, error)
        except UnknownModelError as error:
            return _error(404, error)
        except RequestTooLargeError as error:
            return _error(413, error)
        except QueueFullError as error:
            return _error(503, error, {"Retry-After": str(error.retry_after)})
        except (asyncio.TimeoutError, TimeoutError):
            return _error(504, f"The request took more than {self.limits.timeout:g} s. Send fewer rows at once.")
        except ClientDisconnect:
            return _error(_CLIENT_LEFT, "The client left.")
        except RecursionError:
            return _error(400, "The body cannot be read as JSON: it is nested too deeply. Send flat lists.")
        except (ValueError, TypeError) as error:
            return _error(400, error)
        except ScoringError as error:
            return _error(500, error)
        except Exception as error:
            logger.exception("A request failed.")
            return _error(500, f"The server failed ({type(error).__name__}); its log says more.")

    def _authorize(self, request: Request) -> None:
        if self._token is None:
            return
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token):
            raise HTTPException(
                401,
                "The token is missing or wrong. Send the server's as `Authorization: Bearer TOKEN`.",
                {"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, request: Request) -> Any:
        kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise HTTPException(
                415, f"The content type is {kind!r:.80}, but must be `application/json`. Set this header."
            )
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.limits.max_body:
                raise HTTPException(
                    413, f"The body has more than {self.limits.max_body} bytes, which is the limit. Send fewer rows."
                )
        try:
            return json.loads(bytes(body), parse_constant=_refuse_constant)
        except ValueError as error:
            raise ValueError(f"The body cannot be read as JSON: {error}. Write it with `json.dumps`.") from None

    async def _scored(self, request: Request, job: Job) -> Scored:
        """The rewards of a request; its rows leave the queue at the time limit, or when the client leaves."""
        scored = asyncio.wrap_future(self.queue.submit(job.count, job.encode))
        left = asyncio.ensure_future(_until_disconnect(request))
        try:
            done, _ = await asyncio.wait({scored, left}, timeout=self.limits.timeout, return_when="FIRST_COMPLETED")
            if scored in done:
                return scored.result()
            raise ClientDisconnect if left in done else TimeoutError
        finally:
            left.cancel()
            scored.cancel()


async def _until_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refuse_constant(name: str) -> None:
    """Python's `NaN` and `Infinity`, which are no JSON."""
    raise ValueError(f"it holds {name}, which is no number of JSON")


def _error(status: int, error: Exception | str, headers: dict[str, str] | None = None) -> Response:
    body = {"error": {"message": escape_half_characters(str(error)), "code": status}}
    return JSONResponse(body, status_code=status, headers=headers)


async def _http_error(request: Request, error: HTTPException) -> Response:
    headers = None if error.headers is None else dict(error.headers)
    return _error(error.status_code, error.detail, headers)
