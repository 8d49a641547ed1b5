"""What RAIN asks of a server: request times by prompts in flight, rounds of a prompt, the client's time and memory.

    python recipes/benchmarks/rain_requests.py --server http://localhost:8000 --tokenizer FOLDER --output FILE

`--output` is what `rain_scale.py --times` reads. A round is what a search waits for together: requests for candidates
and rollouts, then those of the judge. Without `--server` only the client is measured, against answers that cost
nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
import tracemalloc
from collections import Counter, defaultdict
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hardware import describe_hardware
from rain_server import messages
from transformers import AutoTokenizer

from hf_interdistill import RainClient, RainConfig
from hf_interdistill.rain.search.requests import Decode, Judge
from hf_interdistill.rain.server.client import Answer, Completion, CompletionsClient
from hf_interdistill.rain.server.engine import ServedSearch
from hf_interdistill.utils.servers import ModelServer

_ROUND: ContextVar[list | None] = ContextVar("round", default=None)


class Recorder:
    """Keeps the requests of searches while it is in place.

    Attributes:
        requests: kind, requests in flight when it was sent, seconds. rounds: by search, the number of requests of
            each round for candidates and rollouts, and of the judge's that follows.
    """

    def __init__(self):
        self.requests: list[tuple[str, int, float]] = []
        self.rounds: dict[int, list[list[int]]] = defaultdict(list)
        self.in_flight = 0

    def __enter__(self) -> Recorder:
        self._originals = ModelServer.post, ServedSearch._answer
        post, answer = self._originals

        async def recorded_post(server, path: str, body: dict, **options: Any):
            group = _ROUND.get()
            if group is None:
                return await post(server, path, body, **options)
            self.in_flight += 1
            kind = kind_of(body)
            group.append(kind)
            number, start = self.in_flight, time.perf_counter()
            try:
                return await post(server, path, body, **options)
            finally:
                self.in_flight -= 1
                self.requests.append((kind, number, time.perf_counter() - start))

        async def recorded_answer(search, request, *arguments):
            group: list[str] = []
            token = _ROUND.set(group)
            try:
                return await answer(search, request, *arguments)
            finally:
                _ROUND.reset(token)
                own = self.rounds[id(search)]
                if isinstance(request, Decode):
                    own.append([len(group), 0])
                elif isinstance(request, Judge) and own:
                    own[-1][1] += len(group)

        ModelServer.post, ServedSearch._answer = recorded_post, recorded_answer  # type: ignore[method-assign]
        return self

    def __exit__(self, *error) -> None:
        ModelServer.post, ServedSearch._answer = self._originals  # type: ignore[method-assign]


def kind_of(body: dict) -> str:
    """What a request is for."""
    if "allowed_token_ids" in body:
        return "judge"
    if body["logprobs"] is None:
        return "rollout"
    return "greedy" if body["temperature"] == 0 else "sampled"


def measure(args, tokenizer, count: int) -> dict:
    """A search from so many prompts, all in flight."""
    config = RainConfig.preset(args.preset, seed=0, max_batch_size=count)
    client = RainClient(args.server, args.name, tokenizer, config)
    client.generate(messages(1), max_new_tokens=1)  # warm up: checks, and the judge prompt
    with Recorder() as recorder:
        start, own = time.perf_counter(), time.process_time()
        records = client.generate(messages(count), max_new_tokens=args.new_tokens)
        seconds, own = time.perf_counter() - start, time.process_time() - own
    times = defaultdict(list)
    for kind, _, each in recorder.requests:
        times[kind].append(each)
    return {
        "prompts": count,
        "seconds": round(seconds, 2),
        "requests": len(recorder.requests),
        "in_flight": round(sum(each for _, _, each in recorder.requests) / seconds, 2),
        "seconds_of_a_request": {kind: round(sum(each) / len(each), 4) for kind, each in times.items()},
        "requests_of_a_kind": {kind: len(each) for kind, each in times.items()},
        "client_seconds_of_a_request": round(own / len(recorder.requests), 6),
        "committed_tokens": sum(record.stats["committed_tokens"] for record in records),
        "rounds": list(recorder.rounds.values()),
    }


class FreeClient(CompletionsClient):
    """Answers with random tokens at once, without a request.

    Args:
        tokenizer: whose tokens they are.
    """

    def __init__(self, tokenizer):
        self.words = [token for token in range(1000, 9000) if tokenizer.decode([token]).isascii()]
        self.random, self.max_length, self.is_processed = random.Random(0), None, False
        self.asked = 0

    def seated(self, seat) -> FreeClient:
        return self

    async def complete(self, prompt, *, max_tokens, logprobs=None, n=1, **parameters: Any) -> Answer:
        await asyncio.sleep(0)
        self.asked += 1
        found = []
        for _ in range(n):
            tokens = tuple(parameters.get("allowed_token_ids") or self.random.choices(self.words, k=max_tokens))
            tokens = tokens[:max_tokens]
            likeliest = [] if logprobs is None else self.random.sample(self.words, logprobs)
            scores = tuple([(token, -0.5), *((other, -1.5) for other in likeliest)] for token in tokens)
            found.append(Completion(tokens, () if logprobs is None else scores))
        return Answer(found, Counter(requests=1))


def measure_client(args, tokenizer, count: int) -> dict:
    """The search's own time for each request, and the memory of its tree, from so many prompts in flight."""
    result: dict[str, Any] = {"prompts": count}
    for is_traced in (False, True):
        config = RainConfig.preset(args.preset, seed=0, max_batch_size=count)
        client = RainClient(
            "http://localhost:1", "free", tokenizer, config, lambda texts: [len(text) % 7 / 7 for text in texts]
        )
        client.client = free = FreeClient(tokenizer)
        free.servers = RainClient("http://localhost:1", "free", tokenizer).client.servers
        client.check = lambda options: None  # type: ignore[method-assign]
        options = client.resolve({"max_new_tokens": args.new_tokens * 8})
        prompts = client.build_prompts(messages(count), options)
        engine = client.build_engine(options)
        kept: list[int] = []
        take = engine._take

        def counted(number: int, engine=engine, kept=kept, take=take):
            kept.append(len(list(engine.searches[number].search.tree.origin.subtree())))
            return take(number)

        engine._take = counted  # type: ignore[method-assign]
        if is_traced:
            tracemalloc.start()
        own = time.process_time()
        peak = 0
        for _ in client.search(engine, prompts, options):
            peak = max(peak, tracemalloc.get_traced_memory()[1]) if is_traced else 0
        if not is_traced:
            result["client_seconds_of_a_request"] = round((time.process_time() - own) / free.asked, 6)
            continue
        tracemalloc.stop()
        result |= {"nodes_of_a_tree": round(sum(kept) / count), "peak_kib_of_a_prompt": round(peak / count / 1024, 1)}
    return result


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", help="address of the server; without it only the client is measured")
    parser.add_argument("--name", default="lm", help="name that the model is served by")
    parser.add_argument("--tokenizer", required=True, help="folder or Hub name of the model's tokenizer")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 4, 16, 32], help="prompts in flight")
    parser.add_argument("--new_tokens", type=int, default=12, help="committed tokens of an answer")
    parser.add_argument("--preset", default="fast", help="preset of RainConfig")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    found: dict[str, Any] = {"hardware": describe_hardware(), "client": [], "runs": []}
    for count in args.prompts:
        found["client"].append(measure_client(args, tokenizer, count))
        print(json.dumps(found["client"][-1]), flush=True)
        if args.server is not None:
            found["runs"].append(measure(args, tokenizer, count))
            print(json.dumps({key: value for key, value in found["runs"][-1].items() if key != "rounds"}), flush=True)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
