"""Scores of texts: each text is scored once, and some are scored speculatively."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .base import Costs, Exchange, Scorer, ScorerError

logger = logging.getLogger(__name__)

_FILLED_BATCH_SIZE = 8  # speculative requests fill a call up to this size
_MIN_TEXTS = 8  # scored texts after which equal values of all are worth a warning


@dataclass(frozen=True)
class ScoreRequest:
    """A completion of a prompt to score, for `owner`; `columns` as in `Exchange`."""

    owner: Any
    prompt: Any
    completion: str
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Cache key of the prompt."""
        return _key(self.prompt, self.columns)

    @property
    def exchange(self) -> Exchange:
        """What a scorer is shown."""
        return Exchange(self.prompt, self.completion, self.columns)


def _key(prompt: Any, columns: Mapping[str, Any] | None) -> str:
    return repr((prompt, columns or {}))


@dataclass(frozen=True)
class ScoreBatch:
    """A scorer call: the requests that were scored, and its costs."""

    requests: Sequence[ScoreRequest]
    costs: Costs


class ScoreCache:
    """Caches the scores of a prompt's completions while searches of that prompt run.

    Args:
        scorer: a bound scorer.
    """

    def __init__(self, scorer: Scorer):
        self.scorer = scorer
        self._values: dict[str, dict[str, float]] = {}
        self._searches: Counter = Counter()
        self._first_values: list[float] | None = []  # until they differ, or a warning was given

    def __len__(self) -> int:
        """Number of cached scores."""
        return sum(map(len, self._values.values()))

    def acquire(self, prompt: Any, columns: Mapping[str, Any] | None = None) -> None:
        """Announce a search of this prompt; `columns` as in `Exchange`."""
        self._searches[_key(prompt, columns)] += 1

    def release(self, prompt: Any, columns: Mapping[str, Any] | None = None) -> None:
        """End a search of this prompt; the last one evicts the prompt's scores."""
        key = _key(prompt, columns)
        self._searches[key] -= 1
        if not self._searches[key]:
            self._values.pop(key, None)

    def value_of(self, request: ScoreRequest) -> float:
        """The cached score of a request."""
        return self._values[request.key][request.completion]

    def score(self, requests: Sequence[ScoreRequest], speculative: Iterable[ScoreRequest]) -> ScoreBatch | None:
        """Score all requests that are not cached, in one call.

        Args:
            requests: what is needed now.
            speculative: what will probably be needed next, in order. If a call is necessary anyway and the scorer
                allows it (`supports_speculation`), the call is filled up with these.

        Returns:
            What was scored; `None` if every request is cached.
        """
        missing = self.missing(requests)
        if not missing:
            return None
        extra: list[ScoreRequest] = []
        if self.scorer.supports_speculation:
            for request in self._missing(speculative, missing):
                if len(missing) + len(extra) >= _FILLED_BATCH_SIZE:
                    break
                extra.append(request)
        try:
            return self._call([*missing, *extra])
        except ScorerError:
            if not extra:
                raise
            return self._call(missing)  # a speculative text must not end a search

    def missing(self, requests: Iterable[ScoreRequest]) -> list[ScoreRequest]:
        """Distinct requests that are not cached."""
        return list(self._missing(requests, ()))

    def add(self, requests: Sequence[ScoreRequest], values: Sequence[float]) -> None:
        """Cache the scores of requests."""
        for request, value in zip(requests, values, strict=True):
            self._values.setdefault(request.key, {})[request.completion] = value
        self._warn_if_constant(values)

    def _missing(self, requests: Iterable[ScoreRequest], known: Sequence[ScoreRequest]) -> Iterator[ScoreRequest]:
        """Distinct requests that are neither cached nor in `known`."""
        seen = {(request.key, request.completion) for request in known}
        for request in requests:
            name = request.key, request.completion
            if name not in seen and request.completion not in self._values.get(request.key, {}):
                seen.add(name)
                yield request

    def _call(self, requests: Sequence[ScoreRequest]) -> ScoreBatch:
        values, costs = self.scorer.score_batch([each.exchange for each in requests])
        self.add(requests, values)
        return ScoreBatch(requests, costs)

    def _warn_if_constant(self, values: Sequence[float]) -> None:
        """Warn once if the first texts all get one value: such scores do not guide the search."""
        if self._first_values is None:
            return
        self._first_values.extend(values)
        if len(set(self._first_values)) > 1:
            self._first_values = None
        elif len(self._first_values) >= _MIN_TEXTS:
            value = self._first_values[0]
            advice = self.scorer.constant_advice(value)
            if advice is not None:
                logger.warning(
                    f"{type(self.scorer).__name__} gave the same value, {value:g}, to all of the first "
                    f"{len(self._first_values)} texts, so it does not guide the search. {advice}"
                )
            self._first_values = None
