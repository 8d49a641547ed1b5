"""Many searches at once on a served model: each is a coroutine that turns its search's requests into requests to it.

Nothing is batched here: the server batches all that is in flight.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from ...utils.random_streams import stream_key
from ...utils.server_pool import Seat
from ...utils.servers import RequestRefusedError, is_of_one_request
from ..config import RainConfig
from ..engine.engine import Prompt
from ..engine.stopping import StopChecker
from ..results.records import RainRecord, record_search
from ..scorers.base import Scorer, ScorerError
from ..search.guided import Search, build_search
from ..search.requests import Commit, Decode, Judge, Request
from .client import CompletionsClient
from .decoding import ServedDecoding
from .sampling import ServedSampling
from .scoring import SearchScores, SearchVectors


class ServedSearch:
    """The search of one prompt.

    Attributes:
        search: its tree. seat: its place on a server, from its first request to its end. judging: costs of the scorer.
        counted_iterations: those that are in the engine's sum. is_finished, error: as in `record_search`.
    """

    def __init__(self, prompt: Prompt, search: Search, decoding: ServedDecoding, seat: Seat):
        self.prompt, self.search, self.decoding, self.seat = prompt, search, decoding, seat
        self.judging: Counter = Counter()
        self.counted_iterations = 0
        self.is_finished = False
        self.error: str | None = None
        self._started: float | None = None
        self._ended: float | None = None

    async def run(self, scores: SearchScores, vectors: SearchVectors | None, on_commit: Callable) -> None:
        """Search until the text ends.

        Args:
            scores, vectors: of all searches. on_commit: called with the tokens of each commit.
        """
        self._started = time.perf_counter()
        scores.cache.acquire(self.prompt.shown, self.prompt.columns)
        steps, answer = self.search.run(), None
        try:
            while True:
                try:
                    request = steps.send(answer)
                except StopIteration:
                    self.is_finished = True
                    return
                answer = await self._answer(request, scores, vectors, on_commit)
        finally:
            self.seat.give_up()
            steps.close()
            scores.cache.release(self.prompt.shown, self.prompt.columns)
            self._ended = time.perf_counter()

    async def _answer(
        self, request: Request, scores: SearchScores, vectors: SearchVectors | None, on_commit: Callable
    ) -> Any:
        if isinstance(request, Decode):
            return await asyncio.gather(*map(self.decoding.run, request.tasks))
        if isinstance(request, Judge):
            values, count, costs = await scores.values(self, self.prompt, request.completions, self.decoding.client)
            self.judging.update(
                judge_calls=count, forward_passes=costs.forward_passes, forward_tokens=costs.total_tokens
            )
            return values
        if isinstance(request, Commit):
            on_commit(request.node.tokens)
            return None
        assert vectors is not None  # searches ask for vectors only then
        return await vectors.vectors(request.texts)

    def record(self) -> RainRecord:
        """What there is of it now."""
        costs = self.judging + self.decoding.costs
        started = time.perf_counter() if self._started is None else self._started
        seconds = (time.perf_counter() if self._ended is None else self._ended) - started
        return record_search(
            self.search, self.prompt.shown, costs, seconds, is_finished=self.is_finished, error=self.error
        )


class ServedEngine:
    """Runs searches on a served model.

    Args:
        client: the model, checked. tokenizer: its own.
        config: the constants; `max_batch_size` searches are in flight, over all servers.
        sampling: how candidates and rollouts are shaped.
        scorer: a bound scorer.
        embedder: `embedder(texts) -> (texts, dimensions)` array, or `None`.
        stop_tokens: see `rollout_stop_tokens`.
        isolates_errors: a prompt that cannot be scored, or that the server refuses, ends alone, with an error in its
            record.

    Attributes:
        searches: by number of the prompt; finished ones are let go.
        committed_tokens: of all searches. iterations: likewise, up to the last commit of each.
        on_commit: called after each commit, in the thread of the requests.
    """

    def __init__(
        self,
        client: CompletionsClient,
        tokenizer,
        config: RainConfig,
        sampling: ServedSampling,
        scorer: Scorer,
        embedder: Callable | None = None,
        *,
        stop_tokens: Sequence[int] = (),
        isolates_errors: bool = False,
    ):
        self.client, self.tokenizer, self.config, self.sampling = client, tokenizer, config, sampling
        self.isolates_errors, self.stop_tokens = isolates_errors, stop_tokens
        self.scores = SearchScores(scorer)
        self.vectors = None if embedder is None else SearchVectors(embedder)
        self.searches: dict[int, ServedSearch] = {}
        self.committed_tokens = self.iterations = 0
        self.on_commit: Callable[[], None] = lambda: None

    async def run(
        self, prompts: Sequence[Prompt], seed: int, stop_strings: Sequence[str] = ()
    ) -> AsyncGenerator[tuple[int, RainRecord], None]:
        """Numbers and records of prompts, each when its text has ended.

        Args:
            prompts: what to search from. seed: of the random streams.
            stop_strings: strings of the stopping criteria, for the server to stop at.

        Raises:
            ServerError: the server failed. ScorerError: the scorer did, unless errors are isolated.
        """
        self.scores.scorer.start_search()
        seen: Counter = Counter()
        for number, prompt in enumerate(prompts):
            occurrence = seen[prompt.ids] if prompt.occurrence is None else prompt.occurrence
            seen[prompt.ids] += 1
            key = stream_key(seed, prompt.ids, occurrence)
            self.searches[number] = self._build(prompt, key, (*stop_strings, *self.config.turn_markers))
        waiting = list(self.searches.items())[::-1]
        running: dict[asyncio.Task, int] = {}
        async with self.client.servers.connected():
            try:
                while waiting or running:
                    while waiting and len(running) < self.config.max_batch_size:
                        number, search = waiting.pop()
                        running[asyncio.create_task(self._run(search))] = number
                    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in sorted(done, key=lambda each: each.exception() is not None):  # what is finished first
                        number = running.pop(task)
                        task.result()
                        yield number, self._take(number)
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    def _build(self, prompt: Prompt, key: int, stop_strings: Sequence[str]) -> ServedSearch:
        rules = StopChecker(prompt.ids, self.tokenizer, self.config, prompt.stop)
        seat = self.client.servers.seat()
        decoding = ServedDecoding(
            self.client.seated(seat),
            rules,
            key,
            self.config,
            self.sampling,
            stop_tokens=self.stop_tokens,
            stop_strings=stop_strings,
        )
        search = build_search(self.config, rules, self.vectors is not None, key)
        return ServedSearch(prompt, search, decoding, seat)

    async def _run(self, search: ServedSearch) -> None:
        try:
            await search.run(self.scores, self.vectors, lambda tokens: self._count_commit(search, tokens))
        except (ScorerError, RequestRefusedError) as error:
            if not (self.isolates_errors and (isinstance(error, ScorerError) or is_of_one_request(error))):
                raise
            search.error, search.is_finished = str(error), True

    def _take(self, number: int) -> RainRecord:
        """The record of a finished search, which is let go."""
        search = self.searches.pop(number)
        self._count_iterations(search)
        record = search.record()
        search.search.tree.release()
        return record

    def _count_commit(self, search: ServedSearch, tokens: Sequence[int]) -> None:
        self.committed_tokens += len(tokens)
        self._count_iterations(search)
        self.on_commit()

    def _count_iterations(self, search: ServedSearch) -> None:
        self.iterations += search.search.iterations - search.counted_iterations
        search.counted_iterations = search.search.iterations


def rollout_stop_tokens(tokenizer, config: RainConfig) -> list[int]:
    """All tokens whose text ends with a character that ends a rollout."""
    if not config.rollout_stops:
        return []
    texts = tokenizer.batch_decode(
        [[token] for token in range(len(tokenizer))], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return [token for token, text in enumerate(texts) if text[-1:] and text[-1] in config.rollout_stops]
