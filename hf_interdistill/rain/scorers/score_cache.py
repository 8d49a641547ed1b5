"""What texts are worth: each is judged once, and some before a search asks for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .base import Costs, Exchange, Scorer, ScorerError

_JUDGED_TOGETHER = 8  # texts up to which a call is filled with some that nobody has asked for yet


@dataclass(frozen=True)
class ScoreRequest:
    """A text to judge: the prompt and a completion, for `owner`."""

    owner: Any
    prompt: Any
    completion: str

    @property
    def key(self) -> str:
        """What verdicts of its prompt are remembered under."""
        return repr(self.prompt)


@dataclass(frozen=True)
class ScoreBatch:
    """A scorer call: the texts that were judged, and what it cost."""

    questions: Sequence[ScoreRequest]
    costs: Costs


class ScoreCache:
    """A scorer's verdicts, remembered while a search of the prompt goes on.

    Args:
        scorer: a bound scorer.
    """

    def __init__(self, scorer: Scorer):
        self.scorer = scorer
        self._values: dict[str, dict[str, float]] = {}
        self._searches: Counter = Counter()

    def __len__(self) -> int:
        """ScoreCache that are remembered now."""
        return sum(map(len, self._values.values()))

    def open(self, prompt: Any) -> None:
        """A search of this prompt will come."""
        self._searches[repr(prompt)] += 1

    def close(self, prompt: Any) -> None:
        """A search of this prompt is over; after the last one its verdicts are forgotten."""
        key = repr(prompt)
        self._searches[key] -= 1
        if not self._searches[key]:
            self._values.pop(key, None)

    def of(self, question: ScoreRequest) -> float:
        """The verdict on a text that was judged."""
        return self._values[question.key][question.completion]

    def judge(self, asked: Sequence[ScoreRequest], ahead: Iterable[ScoreRequest]) -> ScoreBatch | None:
        """Judge what is asked and not known, in one call; `None` if all is known.

        Args:
            asked: what is wanted now. ahead: what will probably be wanted, in order; a scorer whose call is made
                anyway, and that allows it (`supports_speculation`), judges as many of these as there is room for.
        """
        new = list(self._unknown(asked, ()))
        if not new:
            return None
        extra: list[ScoreRequest] = []
        if self.scorer.supports_speculation:
            for question in self._unknown(ahead, new):
                if len(new) + len(extra) >= _JUDGED_TOGETHER:
                    break
                extra.append(question)
        try:
            return self._call([*new, *extra])
        except ScorerError:
            if not extra:
                raise
            return self._call(new)  # a text that nobody may ever ask for must not end a search

    def _unknown(self, questions: Iterable[ScoreRequest], besides: Sequence[ScoreRequest]) -> Iterator[ScoreRequest]:
        """Those without a verdict, each once."""
        seen = {(question.key, question.completion) for question in besides}
        for question in questions:
            name = question.key, question.completion
            if name not in seen and question.completion not in self._values.get(question.key, {}):
                seen.add(name)
                yield question

    def _call(self, questions: Sequence[ScoreRequest]) -> ScoreBatch:
        values, costs = self.scorer.judge([Exchange(question.prompt, question.completion) for question in questions])
        for question, value in zip(questions, values, strict=True):
            self._values.setdefault(question.key, {})[question.completion] = value
        return ScoreBatch(questions, costs)
