"""Scorers: what a text is worth, between -1 and 1.

`"self"` is the model's own judgment (`SelfEvaluationScorer`); a reward model, any Python function and weighted mixes
are the others. Every scorer goes through `Scorer.judge`, which refuses values that are no values.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...scoring.formatting import is_messages, message_texts
from ...utils.errors import RunError

_ROUNDING = 1e-6


class ScorerError(RunError):
    """A scorer failed. `records` holds what each prompt had committed by then."""

    records: Sequence[Any] = ()


@dataclass(frozen=True)
class Exchange:
    """A prompt (text or messages) and the completion so far."""

    prompt: Any
    completion: str

    def prompt_text(self) -> str:
        """The prompt as one text; messages as lines of `role: content`."""
        if not is_messages(self.prompt):
            return self.prompt
        return "\n".join(
            f"{message['role'].capitalize()}: {' '.join(message_texts(message))}" for message in self.prompt
        )


@dataclass
class Costs:
    """Forward passes of the judging model, tokens by exchange, and tokens that all of them share."""

    tokens: list[int]
    forward_passes: int = 0
    shared_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """All tokens read."""
        return sum(self.tokens) + self.shared_tokens


class Scorer:
    """Base of scorers: give `score`; give `bind` if the generating model is needed.

    Attributes:
        supports_speculation: whether a call may hold texts that the search has not asked for, and perhaps never will.
            Right where more texts in a call cost little and a call has no effect but its answer.

    Relations: `as_scorer` makes one of what users pass.
    """

    supports_speculation: bool = False

    def bind(self, model, tokenizer) -> Scorer:
        """This scorer, ready for a generating model."""
        return self

    def score(self, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """One value in [-1, 1] an exchange."""
        raise NotImplementedError

    def costs(self, count: int) -> Costs:
        """What the last `score` of `count` exchanges cost in forward passes."""
        return Costs([0] * count)

    def judge(self, exchanges: Sequence[Exchange]) -> tuple[list[float], Costs]:
        """`score`, checked.

        Raises:
            ScorerError: the scorer raised, took too long, or gave the wrong number of values, NaN, or a value outside
                [-1, 1].
        """
        try:
            values = self.score(exchanges)
        except ScorerError:
            raise
        except Exception as error:
            raise ScorerError(
                f"The scorer {type(self).__name__} raised {type(error).__name__}: {error}. It was given "
                f"{len(exchanges)} texts, the first of them {exchanges[0].completion[:80]!r}."
            ) from error
        return check_values(values, len(exchanges), type(self).__name__), self.costs(len(exchanges))


def check_values(values, count: int, name: str) -> list[float]:
    """Plain floats; raises `ScorerError` for a wrong count, NaN, or a value outside [-1, 1]."""
    try:
        values = [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise ScorerError(f"{name} must return one number a text, but returned {values!r}.") from error
    if len(values) != count:
        raise ScorerError(f"{name} returned {len(values)} values for {count} texts. Return one a text, in order.")
    for value in values:
        if math.isnan(value):
            raise ScorerError(f"{name} returned NaN. Return a number between -1 and 1 for every text.")
        if not -1 - _ROUNDING <= value <= 1 + _ROUNDING:
            raise ScorerError(
                f"{name} returned {value}, but a value must lie between -1 and 1. Map your scores, for example with "
                "tanh; `RewardModelScorer` does that for rewards."
            )
    return [min(max(value, -1.0), 1.0) for value in values]


def call_within(seconds: float | None, function: Callable, *args):
    """Call a function; with a time limit, in a thread of its own. Raises `ScorerError` when it takes longer."""
    if seconds is None:
        return function(*args)
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["value"] = function(*args)
        except BaseException as error:
            outcome["error"] = error

    # A daemon thread: Python cannot end a function that hangs, but the program can end without it.
    thread = threading.Thread(target=work, daemon=True, name="rain-scorer")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise ScorerError(f"The scorer did not answer within {seconds} seconds. Raise `timeout`, or make it faster.")
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


@dataclass
class FunctionScorer(Scorer):
    """A Python function on texts.

    Args:
        function: `function(texts) -> values`, one in [-1, 1] a text.
        with_prompt: give it prompt and completion as one text; otherwise the completion alone.
        timeout: seconds that a call may take.
    """

    function: Callable[[list[str]], Sequence[float]]
    with_prompt: bool = False
    timeout: float | None = None

    def score(self, exchanges):
        """See `Scorer.score`."""
        texts = [self._text(exchange) for exchange in exchanges]
        return call_within(self.timeout, self.function, texts)

    def _text(self, exchange: Exchange) -> str:
        if not self.with_prompt:
            return exchange.completion
        # Messages end with a line of the other role; a plain text goes straight on.
        lead = exchange.prompt_text()
        if is_messages(exchange.prompt):
            lead += "\nAssistant: "
        return lead + exchange.completion


@dataclass
class RewardModelScorer(Scorer):
    """A reward model: `RewardScorer`, or anything called as `reward(prompts, completions) -> rewards`.

    The value is `tanh((reward - center) / scale)`: 0 at `center`, 0.76 one `scale` above it. The published
    `value_threshold` of 0.8 is then reached 1.1 scales above the center.

    Args:
        reward: the reward model with its own tokenizer and chat template. Messages are passed on as messages (the
            completion as one of the assistant), texts as texts.
        scale: rewards that count as a clear difference, in the reward's own unit.
        center: the reward of an answer that is neither good nor bad.
        timeout: seconds that a call may take.
    """

    reward: Callable
    scale: float = 1.0
    center: float = 0.0
    timeout: float | None = None

    def __post_init__(self):
        if not 0 < self.scale < math.inf:
            raise ValueError(f"`scale` is {self.scale}, but must be a positive number (in the reward's unit).")

    def score(self, exchanges):
        """See `Scorer.score`."""
        prompts = [exchange.prompt for exchange in exchanges]
        completions = [
            [{"role": "assistant", "content": exchange.completion}]
            if is_messages(exchange.prompt)
            else exchange.completion
            for exchange in exchanges
        ]
        rewards = [float(reward) for reward in call_within(self.timeout, self.reward, prompts, completions)]
        return [math.tanh((reward - self.center) / self.scale) for reward in rewards]

    def costs(self, count: int) -> Costs:
        """What the reward model read, if it tells (`RewardScorer` does); nothing otherwise."""
        tokens = getattr(self.reward, "last_token_counts", None)
        if tokens is None:
            return Costs([0] * count)
        return Costs(list(tokens), self.reward.last_forward_passes)


@dataclass
class WeightedScorer(Scorer):
    """A weighted mean of scorers.

    Args:
        parts: pairs of scorer (or what `as_scorer` takes) and positive weight; weights need not sum to 1.
    """

    parts: Sequence[tuple[Any, float]]
    _costs: list[Costs] = field(default_factory=list, repr=False)

    def __post_init__(self):
        if not self.parts or any(not 0 < weight < math.inf for _, weight in self.parts):
            weights = [weight for _, weight in self.parts]
            raise ValueError(f"The weights are {weights}, but WeightedScorer needs at least one, all positive.")
        self.parts = [(as_scorer(scorer), float(weight)) for scorer, weight in self.parts]

    @property
    def supports_speculation(self) -> bool:
        """Whether all parts do."""
        return all(scorer.supports_speculation for scorer, _ in self.parts)

    def bind(self, model, tokenizer) -> Scorer:
        """See `Scorer.bind`."""
        return WeightedScorer([(scorer.bind(model, tokenizer), weight) for scorer, weight in self.parts])

    def score(self, exchanges):
        """See `Scorer.score`."""
        judged = [scorer.judge(exchanges) for scorer, _ in self.parts]
        self._costs = [costs for _, costs in judged]
        total = sum(weight for _, weight in self.parts)
        return [
            sum(weight / total * values[i] for (values, _), (_, weight) in zip(judged, self.parts, strict=True))
            for i in range(len(exchanges))
        ]

    def costs(self, count: int) -> Costs:
        """See `Scorer.costs`."""
        return Costs(
            [sum(costs.tokens[i] for costs in self._costs) for i in range(count)],
            sum(costs.forward_passes for costs in self._costs),
            sum(costs.shared_tokens for costs in self._costs),
        )


def as_scorer(scorer, judge: str = "harmlessness", vote: str = "hard", cuda_graphs: bool | None = None) -> Scorer:
    """A scorer from what users pass.

    Args:
        scorer: a `Scorer`; `"self"`; a function of one argument (texts); or a callable of two (prompts, completions),
            which is taken for a reward model with scale 1.
        judge: judge prompt of `"self"`.
        vote: vote of `"self"`.
        cuda_graphs: of `"self"`, see `RainConfig`.
    """
    from .self_evaluation import SelfEvaluationScorer

    if isinstance(scorer, Scorer):
        return scorer
    if isinstance(scorer, str):
        if scorer != "self":
            raise ValueError(
                f"The scorer is {scorer!r}, but the only scorer with a name is 'self'. Pass a Scorer, a RewardScorer, "
                "or a function of a list of texts."
            )
        return SelfEvaluationScorer(judge, vote=vote, cuda_graphs=cuda_graphs)
    if not callable(scorer):
        raise TypeError(
            f"The scorer is a {type(scorer).__name__}, but must be 'self', a Scorer, a RewardScorer, or a function of "
            "a list of texts."
        )
    try:
        parameters = inspect.signature(scorer).parameters.values()
    except ValueError:  # some built-in callables have no signature
        return FunctionScorer(scorer)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [each for each in parameters if each.kind in kinds and each.default is each.empty]
    return RewardModelScorer(scorer) if len(needed) == 2 else FunctionScorer(scorer)
