"""Scorers from a Python function or a reward model."""

from __future__ import annotations

import copy
import math
import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary

from ...scoring.formatting import is_messages
from .base import Costs, Exchange, Scorer, as_numbers, call_within, check_timeout, template_columns

_LOCK = threading.Lock()
_REWARD_LOCKS: WeakKeyDictionary = WeakKeyDictionary()  # reward model that counts its tokens -> lock of its calls


@dataclass
class FunctionScorer(Scorer):
    """Scores texts with a Python function.

    Args:
        function: `function(texts) -> values`, with one value in [-1, 1] per text.
        with_prompt: pass prompt and completion as one text; otherwise only the completion is passed.
        timeout: seconds that a call may take.
    """

    function: Callable[[list[str]], Sequence[float]]
    with_prompt: bool = False
    timeout: float | None = None

    def __post_init__(self):
        check_timeout(self.timeout)

    def score(self, exchanges):
        """See `Scorer.score`."""
        texts = [self._text(exchange) for exchange in exchanges]
        return call_within(self.timeout, self.function, texts)

    def _text(self, exchange: Exchange) -> str:
        if not self.with_prompt:
            return exchange.completion
        prompt = exchange.prompt_text()
        # After messages, the completion is a new line of the assistant; it directly continues a plain text.
        if is_messages(exchange.prompt):
            prompt += "\nAssistant: "
        return prompt + exchange.completion


@dataclass
class RewardModelScorer(Scorer):
    """Scores texts with a reward model: `RewardScorer`, or any `reward(prompts, completions) -> rewards`.

    The value is `tanh((reward - center) / scale)`: 0 at `center`, 0.76 at one `scale` above it. The published
    `value_threshold` of 0.8 is reached at 1.1 scales above the center.

    Args:
        reward: the reward model with its own tokenizer and chat template. Messages are passed as messages (the
            completion as a message of the assistant), texts as texts. Prompts with `tools` or `chat_template_kwargs`
            are passed with these, as keyword arguments with one entry per text.
        scale: the difference of rewards that counts as clear, in units of the reward.
        center: the reward of an answer that is neither good nor bad.
        timeout: seconds that a call may take.
    """

    reward: Callable
    scale: float = 1.0
    center: float = 0.0
    timeout: float | None = None
    _costs: Costs | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self):
        check_scale(self.scale, self.center)
        check_timeout(self.timeout)

    def bind(self, model, tokenizer) -> Scorer:
        """See `Scorer.bind`: a scorer that counts the costs of its own search, of the same reward model."""
        return copy.copy(self)

    def score(self, exchanges):
        """See `Scorer.score`."""
        prompts = [exchange.prompt for exchange in exchanges]
        completions = [
            [{"role": "assistant", "content": exchange.completion}]
            if is_messages(exchange.prompt)
            else exchange.completion
            for exchange in exchanges
        ]
        rewards, self._costs = call_within(self.timeout, self._call, prompts, completions, template_columns(exchanges))
        rewards = as_numbers(rewards, type(self).__name__)
        return [math.tanh((reward - self.center) / self.scale) for reward in rewards]

    def constant_advice(self, value: float) -> str | None:
        """See `Scorer.constant_advice`."""
        return (
            f"The rewards may be many times `scale` ({self.scale:g}) away from `center` ({self.center:g}), where "
            "tanh is flat. Set `center` to a typical reward and `scale` to the spread of rewards: "
            "`RewardModelScorer.calibrated(reward, prompts, completions)` measures both."
        )

    @classmethod
    def calibrated(cls, reward: Callable, prompts: Sequence, completions: Sequence, **settings) -> RewardModelScorer:
        """A scorer whose `center` and `scale` are the median and the standard deviation of some rewards.

        Args:
            reward: the reward model. prompts, completions: texts like those to be scored, two or more.
            **settings: other fields, such as `timeout`.

        Raises:
            ValueError: fewer than two rewards, rewards that are not finite, or all equal.
        """
        rewards = [float(each) for each in reward(list(prompts), list(completions))]
        if len(rewards) < 2 or not all(map(math.isfinite, rewards)) or len(set(rewards)) == 1:
            raise ValueError(
                f"The rewards of {len(rewards)} completions are {rewards[:5]}, but a scale needs at least two finite "
                "rewards that differ. Give more, and more varied, completions."
            )
        return cls(reward, scale=statistics.stdev(rewards), center=statistics.median(rewards), **settings)

    def costs(self, count: int) -> Costs:
        """Costs of the reward model if it counts them, as `RewardScorer` does; 0 otherwise."""
        return Costs([0] * count) if self._costs is None else self._costs

    def _call(self, prompts: Sequence, completions: Sequence, columns: dict[str, list]) -> tuple[Any, Costs | None]:
        """Rewards and their costs. Threads take turns, since a reward model keeps only the counts of its last call."""
        if getattr(self.reward, "last_token_counts", None) is None:
            return self.reward(prompts, completions, **columns), None
        with _lock_of(self.reward):
            rewards: Any = self.reward(prompts, completions, **columns)
            counts: Any = self.reward
            return rewards, Costs(list(counts.last_token_counts), getattr(counts, "last_forward_passes", 0))


def _lock_of(reward: Callable) -> threading.Lock:
    """The one lock of a reward model."""
    with _LOCK:
        return _REWARD_LOCKS.setdefault(reward, threading.Lock())


def check_scale(scale: float, center: float) -> None:
    """Raise `ValueError` for a scale that is not positive, or numbers that are not finite."""
    if not _is_finite(scale) or scale <= 0:
        raise ValueError(f"`scale` is {scale!r}, but must be a positive number (in the unit of the reward).")
    if not _is_finite(center):
        raise ValueError(f"`center` is {center!r}, but must be a finite number (in the unit of the reward).")


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
