"""Servers of tiny reward models: in this process, and as `interdistill serve` in one of its own."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import requests
import uvicorn

from hf_interdistill import RemoteRewardScorer
from hf_interdistill.serving.app import RewardApp
from hf_interdistill.serving.running import bind, url_of
from support.processes import environment_with

CLIENTS = 32


@contextlib.contextmanager
def served(app: RewardApp) -> Iterator[str]:
    """The URL of an application under uvicorn on loopback, in a thread of this process."""
    with bind("127.0.0.1", 0) as bound:
        server = uvicorn.Server(uvicorn.Config(app.asgi, log_config=None, access_log=False, lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        try:
            wait_for_health(url_of(bound))
            yield url_of(bound)
        finally:
            server.should_exit = True
            thread.join(30)


def wait_for_health(url: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if requests.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except requests.RequestException:
            pass
        assert time.monotonic() < end, f"{url} did not answer"
        time.sleep(0.02)


class ServerProcess:
    """`interdistill serve` in another process, at a free port."""

    def __init__(self, *arguments: str, **environment: str):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hf_interdistill.cli", "serve", "--port", "0", "--device", "cpu", *arguments],
            env=environment_with(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.printed = ""
        while not (found := re.search(r"at (http://\S+)", self.printed)):
            line = self.process.stdout.readline()
            assert line, f"it ended: {self.printed}"
            self.printed += line
        self.url = found[1]
        wait_for_health(self.url)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *exception) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.stdout.close()
        self.process.wait(30)


def rows_of(client: int, turn: int) -> tuple[list[str], list[str]]:
    """Prompts and completions of many lengths; no two rows of all clients are alike."""
    names = [f"{client} {turn} {number}" for number in range(1 + (client + turn) % 5)]
    return [f"Question {name}: " for name in names], [f"so {name} " * (1 + (client * 7 + turn) % 11) for name in names]


def ask_all(url: str, turns: int, retries: int = 50) -> dict[tuple[int, int], list[float]]:
    """Rewards by client and turn; each client has one connection, and sends a request when the last is answered."""
    found: dict[tuple[int, int], list[float]] = {}

    def client(number: int) -> None:
        scorer = RemoteRewardScorer(url, retries=retries)
        for turn in range(turns):
            found[number, turn] = scorer(*rows_of(number, turn))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    return found
