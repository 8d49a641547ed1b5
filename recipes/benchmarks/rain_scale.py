"""How long RAIN takes over N servers: a simulation from measured request times.

    python recipes/benchmarks/rain_scale.py --prompts 1000 --servers 1 2 4 8 16 32

Prompts run as `RainClient` runs them: so many in flight, each on the server with the fewest, round after round. A
server shares its time among what is in flight; its slowdown by requests in flight is the measured one, and beyond the
largest measured number grows with it. A client spends time of its own on each request, one request after the other.
`--times FILE` takes the output of `rain_requests.py` in place of the figures below. `--speed` and `--clients` are
assumptions: faster servers, and several client processes that share the prompts.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Of `rain_requests.py` with 1, 4 and 8 prompts in flight on one core (see `README.md`); all had the same rounds.
MEASURED: dict[str, Any] = {
    "client": [{"peak_kib_of_a_prompt": 1165.0}, {"peak_kib_of_a_prompt": 948.8}, {"peak_kib_of_a_prompt": 931.1}],
    "runs": [
        {
            "in_flight": 7.85,
            "requests": 40,
            "seconds_of_a_request": {"greedy": 10.7708, "sampled": 10.7937, "rollout": 4.4237, "judge": 1.4489},
            "requests_of_a_kind": {"greedy": 5, "sampled": 5, "rollout": 8, "judge": 22},
            "client_seconds_of_a_request": 0.001289,
            "rounds": [[[2, 0], [6, 9], [10, 13]]],
        },
        {
            "in_flight": 28.15,
            "requests": 160,
            "seconds_of_a_request": {"greedy": 47.5745, "sampled": 48.2873, "rollout": 20.1529, "judge": 6.3989},
            "requests_of_a_kind": {"greedy": 20, "sampled": 20, "rollout": 32, "judge": 88},
            "client_seconds_of_a_request": 0.00113,
            "rounds": [[[2, 0], [6, 9], [10, 13]]],
        },
        {
            "in_flight": 53.64,
            "requests": 320,
            "seconds_of_a_request": {"greedy": 61.8738, "sampled": 62.9472, "rollout": 36.2197, "judge": 9.3842},
            "requests_of_a_kind": {"greedy": 40, "sampled": 40, "rollout": 64, "judge": 176},
            "client_seconds_of_a_request": 0.001625,
            "rounds": [[[2, 0], [6, 9], [10, 13]]],
        },
    ],
}


@dataclass(frozen=True)
class Times:
    """Measured times.

    Args:
        base: seconds of a request for candidates or rollouts, and of a judge's, at the smallest number in flight.
        slowdown: how many times as long a request takes, by requests in flight of a server; 1 at the smallest number.
        rounds: of each prompt, requests for candidates and rollouts and the judge's requests that follow, by round.
        client_seconds: the client's own time for each request.
        kib: memory of a prompt in flight.
    """

    base: tuple[float, float]
    slowdown: dict[float, float]
    rounds: Sequence[Sequence[tuple[int, int]]]
    client_seconds: float
    kib: float

    def slow(self, in_flight: int) -> float:
        """The slowdown, between measured numbers by a straight line."""
        known = sorted(self.slowdown.items())
        if in_flight <= known[0][0]:
            return known[0][1]
        for (low, low_value), (high, high_value) in itertools.pairwise(known):
            if in_flight <= high:
                return low_value + (high_value - low_value) * (in_flight - low) / (high - low)
        return known[-1][1] * in_flight / known[-1][0]

    @property
    def most(self) -> float:
        """Seconds of `base` that a server does in a second when it is full."""
        return max(number / value for number, value in self.slowdown.items())

    @classmethod
    def of(cls, found: dict[str, Any]) -> Times:
        """From the output of `rain_requests.py`."""
        runs = sorted(found["runs"], key=lambda run: run["in_flight"])
        first, last = runs[0]["seconds_of_a_request"], runs[-1]

        def mean(run: dict, is_judge: bool) -> float:
            counts = {kind: n for kind, n in last["requests_of_a_kind"].items() if (kind == "judge") == is_judge}
            return sum(run["seconds_of_a_request"][kind] * n for kind, n in counts.items()) / sum(counts.values())

        total = last["requests"]
        slowdown = {
            run["in_flight"]: sum(
                seconds / first[kind] * last["requests_of_a_kind"][kind] / total
                for kind, seconds in run["seconds_of_a_request"].items()
            )
            for run in runs
        }
        return cls(
            (mean(runs[0], False), mean(runs[0], True)),
            slowdown,
            [[(decodes, judged) for decodes, judged in prompt] for prompt in last["rounds"]],
            last["client_seconds_of_a_request"],
            max(each["peak_kib_of_a_prompt"] for each in found["client"]),
        )


@dataclass
class Server:
    """Shares its time among its requests.

    Attributes:
        work: what each request has got so far since the server started, if it was there from the start. waiting: the
            work at which a request is done, with its prompt. version: of the next completion that is foreseen.
    """

    work: float = 0.0
    since: float = 0.0
    waiting: list[tuple[float, int, Prompt]] = field(default_factory=list)
    version: int = 0

    def advance(self, now: float, times: Times) -> None:
        """Do what is done until now."""
        if self.waiting:
            self.work += (now - self.since) / times.slow(len(self.waiting))
        self.since = now


@dataclass
class Prompt:
    """A prompt in flight.

    Attributes:
        parts: numbers of requests that are sent together, and whether they are the judge's. pending: unanswered ones.
    """

    parts: deque[tuple[int, bool]]
    client: int
    server: int = -1
    pending: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a simulation gives.

    Args:
        seconds: until the last prompt. requests: of all. busy: share of what full servers do in that time.
        client_busy: share of the clients' time. most: prompts in flight at most.
    """

    seconds: float
    requests: int
    busy: float
    client_busy: float
    most: int


class Simulation:
    """One job.

    Args:
        times: measured. prompts, servers, clients: how many. per_server: prompts in flight for each server, over all
            clients. speed: how many times faster servers are. seed: of the draw of prompts among the measured ones.
    """

    def __init__(
        self,
        times: Times,
        prompts: int,
        servers: int,
        *,
        per_server: int = 16,
        clients: int = 1,
        speed: float = 1.0,
        seed: int = 0,
    ):
        drawn = self.drawn = random.Random(seed)
        self.times, self.speed = times, speed
        self.servers = [Server() for _ in range(servers)]
        self.queues: list[deque[Prompt]] = [deque() for _ in range(clients)]
        for number in range(prompts):
            parts = [part for round_ in drawn.choice(times.rounds) for part in zip(round_, (False, True), strict=True)]
            client = number % clients
            self.queues[client].append(Prompt(deque((count, judged) for count, judged in parts if count), client))
        self.places = [max(1, per_server * servers // clients)] * clients
        self.seats = [[0] * servers for _ in range(clients)]
        self.free_at = [0.0] * clients
        self.events: list[tuple[float, int, int, int, Any]] = []
        self.order = itertools.count()
        self.requests = self.flying = self.most = 0
        self.done = 0.0
        self.now = 0.0

    def run(self) -> Outcome:
        """Simulate to the end."""
        for client in range(len(self.queues)):
            self._start(client)
        while self.events:
            self.now, _, number, version, arriving = heapq.heappop(self.events)
            server = self.servers[number]
            if arriving is None and version != server.version:
                continue  # other requests have come or gone in the meantime
            server.advance(self.now, self.times)
            if arriving is not None:
                prompt, work = arriving
                heapq.heappush(server.waiting, (server.work + work, next(self.order), prompt))
                self._foresee(number)
                continue
            _, _, prompt = heapq.heappop(server.waiting)
            self._foresee(number)
            prompt.pending -= 1
            if not prompt.pending:
                self._send(prompt)
        own = self.requests * self.times.client_seconds
        return Outcome(
            self.now,
            self.requests,
            self.done / (self.now * len(self.servers) * self.times.most),
            own / (self.now * len(self.queues)),
            self.most,
        )

    def _start(self, client: int) -> None:
        """Start prompts of a client where it has places."""
        while self.queues[client] and self.places[client]:
            prompt = self.queues[client].popleft()
            self.places[client] -= 1
            seats = self.seats[client]
            fewest = min(seats)
            prompt.server = self.drawn.choice([server for server, count in enumerate(seats) if count == fewest])
            seats[prompt.server] += 1
            self.flying += 1
            self.most = max(self.most, self.flying)
            self._send(prompt)

    def _send(self, prompt: Prompt) -> None:
        """Send what a prompt asks for next; without such, the next prompt starts."""
        if not prompt.parts:
            self.flying -= 1
            self.places[prompt.client] += 1
            self.seats[prompt.client][prompt.server] -= 1
            self._start(prompt.client)
            return
        count, is_judge = prompt.parts.popleft()
        work = self.times.base[is_judge] / self.speed
        prompt.pending = count
        self.requests += count
        self.done += count * work
        for _ in range(count):
            ready = max(self.now, self.free_at[prompt.client]) + self.times.client_seconds
            self.free_at[prompt.client] = ready
            heapq.heappush(self.events, (ready, next(self.order), prompt.server, 0, (prompt, work)))

    def _foresee(self, number: int) -> None:
        """Note when a server answers next, as it is now."""
        server = self.servers[number]
        server.version += 1
        if server.waiting:
            left = max(0.0, server.waiting[0][0] - server.work) * self.times.slow(len(server.waiting))
            heapq.heappush(self.events, (self.now + left, next(self.order), number, server.version, None))


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=Path, help="output of rain_requests.py")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--per_server", type=int, default=16, help="prompts in flight for each server")
    parser.add_argument("--clients", type=int, nargs="+", default=[1], help="client processes")
    parser.add_argument("--speed", type=float, nargs="+", default=[1.0], help="how many times faster servers are")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    times = Times.of(MEASURED if args.times is None else json.loads(args.times.read_text()))
    print(
        f"client: at most {1 / times.client_seconds:.0f} requests a second; {times.kib:.0f} KiB for a prompt in flight"
    )
    print("| speed | clients | servers | hours | times one server | servers busy | client busy | MiB of trees |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for speed, clients in itertools.product(args.speed, args.clients):
        first = None
        for servers in args.servers:
            settings = {"per_server": args.per_server, "clients": clients, "speed": speed, "seed": args.seed}
            found = Simulation(times, args.prompts, servers, **settings).run()
            first = found.seconds if first is None else first
            print(
                f"| {speed:g} | {clients} | {servers} | {found.seconds / 3600:.3g} | {first / found.seconds:.3g} | "
                f"{found.busy:.0%} | {found.client_busy:.0%} | {found.most * times.kib / 1024:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
