"""Runs the application under uvicorn, on a socket that was bound before the model is loaded."""

from __future__ import annotations

import math
import signal
import socket

import uvicorn

from .app import RewardApp

_KEEP_ALIVE = 75  # seconds; clients keep connections, and one that closes under a request is an error for them


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound, and takes no connections yet.

    Raises:
        OSError: the address is not this machine's, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise OSError(
            f"The server cannot listen at {host}:{port} ({error.strerror or error}). Choose another `port` (0 for any "
            "that is free), or a `host` of this machine."
        ) from error
    return bound


def url_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: RewardApp, bound: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; requests that have come are then answered, within their time limit."""
    config = uvicorn.Config(
        app.asgi,
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(app.limits.timeout) + 1,
    )
    # uvicorn raises the signal again when it has stopped: then it only ends this function.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        uvicorn.Server(config).run(sockets=[bound])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
