"""Values and vectors of texts for many searches: each text once, and what waits together goes in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from ..engine.engine import Prompt
from ..scorers.base import Costs, Exchange, Scorer, ScorerError
from ..scorers.embedder import as_vectors
from ..scorers.score_cache import ScoreCache, ScoreRequest
from .client import CompletionsClient
from .judge import ServedJudge


class CallBatcher:
    """Calls a function that is not asynchronous, in a thread; what is asked for in the meantime is the next call.

    Args:
        function: `function(items) -> results`, one for each.
    """

    def __init__(self, function: Callable[[list[Any]], Sequence[Any]]):
        self._function = function
        self._waiting: list[tuple[Any, asyncio.Future]] = []
        self._running: asyncio.Task | None = None

    async def __call__(self, item: Any) -> Any:
        """The result of an item; the exception of its call."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        await asyncio.sleep(0)  # others may be about to ask
        while self._waiting:
            calls, self._waiting = self._waiting, []
            try:
                results = await asyncio.to_thread(self._function, [item for item, _ in calls])
            except Exception as error:
                for _, future in calls:
                    _settle(future, error)
                continue
            for (_, future), result in zip(calls, results, strict=True):
                _settle(future, result)


def _settle(future: asyncio.Future, result: Any) -> None:
    if future.done():  # its search has ended
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


class SearchScores:
    """Scores the texts of all searches.

    Args:
        scorer: a bound scorer.
    """

    def __init__(self, scorer: Scorer):
        self.scorer = scorer
        self.cache = ScoreCache(scorer)
        self._batcher = CallBatcher(self._score_groups)

    async def values(
        self, owner: Any, prompt: Prompt, completions: Sequence[str], client: CompletionsClient
    ) -> tuple[list[float], int, Costs]:
        """Values of completions of a prompt, how many were scored now, and what those cost.

        Args:
            owner: the search. prompt: its prompt. completions: its texts.
            client: the served model on the server of this prompt, for a judge.

        Raises:
            ScorerError: the scorer failed on these texts.
        """
        requests = [ScoreRequest(owner, prompt.shown, text, prompt.columns) for text in completions]
        missing = self.cache.missing(requests)
        costs = Costs([])
        if missing:
            exchanges = [each.exchange for each in missing]
            if isinstance(self.scorer, ServedJudge):
                values, costs = await self.scorer.score_async(exchanges, client)
            else:
                values, costs = await self._batcher(exchanges)
            self.cache.add(missing, values)
        return [self.cache.value_of(each) for each in requests], len(missing), costs

    def _score_groups(self, groups: list[list[Exchange]]) -> list[Any]:
        """Values and costs of each group, by one call of the scorer; if it fails, by one call each, or an error."""
        try:
            values, costs = self.scorer.score_batch([each for group in groups for each in group])
        except ScorerError as error:
            if len(groups) == 1:
                return [error]
            return [result for group in groups for result in self._score_groups([group])]
        results, start = [], 0
        for group in groups:
            own = slice(start, start + len(group))
            shared = costs.shared_tokens if start == 0 else 0
            results.append((values[own], Costs(costs.tokens[own], costs.forward_passes, shared)))
            start += len(group)
        return results


class SearchVectors:
    """Embeds the texts of all searches.

    Args:
        embedder: `embedder(texts) -> (texts, dimensions)`.
    """

    def __init__(self, embedder: Callable):
        self._embedder = embedder
        self._batcher = CallBatcher(self._embed_groups)

    async def vectors(self, texts: Sequence[str]) -> list[Any]:
        """One vector for each text."""
        return await self._batcher(texts)

    def _embed_groups(self, groups: list[Sequence[str]]) -> list[list[Any]]:
        texts = list(dict.fromkeys(text for group in groups for text in group))
        vectors = dict(zip(texts, as_vectors(self._embedder(texts), texts), strict=True))
        return [[vectors[text] for text in group] for group in groups]
