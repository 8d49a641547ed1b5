"""The interface of scorers. A scorer maps a prompt and a completion to a value between -1 and 1.

Relations: `builtin.py`, `weighted.py` and `self_evaluation.py` implement it; `resolve.py` turns what users pass into a
scorer.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from ...scoring.formatting import is_messages, message_texts
from ...utils.errors import RunError
from ...utils.servers import ServerError, is_of_one_request

_ROUNDING = 1e-6  # how far a value may lie outside [-1, 1]


class ScorerError(RunError):
    """A scorer failed. `records` holds what each prompt had committed when it failed."""

    records: Sequence[Any] = ()


@dataclass(frozen=True)
class Exchange:
    """A prompt (text or messages) and the completion so far.

    Args:
        columns: what else the prompt's row has for a chat template: `tools`, `chat_template_kwargs`.
    """

    prompt: Any
    completion: str
    columns: Mapping[str, Any] = field(default_factory=dict)

    def prompt_text(self) -> str:
        """The prompt as one text; messages become lines of `Role: content`."""
        if not is_messages(self.prompt):
            return self.prompt
        return "\n".join(
            f"{message['role'].capitalize()}: {' '.join(message_texts(message))}" for message in self.prompt
        )


@dataclass
class Costs:
    """Costs of one scorer call.

    Args:
        tokens: tokens that the scoring model read for each exchange alone.
        forward_passes: forward passes of the scoring model.
        shared_tokens: tokens read once for all exchanges.
    """

    tokens: list[int]
    forward_passes: int = 0
    shared_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """All tokens read."""
        return sum(self.tokens) + self.shared_tokens


class Scorer:
    """Base class of scorers. Implement `score`; implement `bind` too if the scorer needs the generating model.

    Attributes:
        supports_speculation: whether a call may contain texts that the search has not requested and may never request.
            Set it only if additional texts in a call cost little and a call has no side effects.

    Relations: `as_scorer` turns what users pass into a scorer.
    """

    supports_speculation: bool = False
    is_rain_scorer = True  # an exported strategy checks this attribute: its own `Scorer` is another class

    def bind(self, model, tokenizer) -> Scorer:
        """This scorer, ready for a generating model."""
        return self

    def start_search(self) -> None:
        """Called on a bound scorer before a search asks it for values; the model does not change until it ends."""

    def score(self, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """One value in [-1, 1] per exchange."""
        raise NotImplementedError

    def constant_advice(self, value: float) -> str | None:
        """What to do if all texts get the same value, or `None` if that is expected."""
        return "Return values between -1 and 1 that differ between texts."

    def costs(self, count: int) -> Costs:
        """Costs of the last `score` call, which had `count` exchanges."""
        return Costs([0] * count)

    def score_batch(self, exchanges: Sequence[Exchange]) -> tuple[list[float], Costs]:
        """Call `score` and check its result.

        Returns:
            One value per exchange, and the costs of the call.

        Raises:
            ScorerError: the scorer raised, took too long, or returned the wrong number of values, NaN, or a value
                outside [-1, 1].
            ServerError: the server that the scorer asks failed.
        """
        try:
            values = self.score(exchanges)
        except ScorerError:
            raise
        except Exception as error:
            if isinstance(error, ServerError) and not is_of_one_request(error):
                raise  # not the fault of a text
            raise ScorerError(
                f"The scorer {type(self).__name__} raised {type(error).__name__}: {error}. It was given "
                f"{len(exchanges)} texts; the first is {exchanges[0].completion[:80]!r}."
            ) from error
        checked, costs = check_values(values, len(exchanges), type(self).__name__), self.costs(len(exchanges))
        if len(costs.tokens) != len(exchanges):
            raise ScorerError(
                f"{type(self).__name__} returned costs of {len(costs.tokens)} texts, but scored {len(exchanges)}. Let "
                "`costs` return one number of tokens per text."
            )
        return checked, costs


def template_columns(exchanges: Sequence[Exchange]) -> dict[str, list[Any]]:
    """The columns of exchanges as arguments of a reward model, one entry per exchange; none where no row has any."""
    names = sorted({name for exchange in exchanges for name in exchange.columns})
    return {name: [exchange.columns.get(name) for exchange in exchanges] for name in names}


def as_numbers(values, name: str) -> list[float]:
    """Numbers in any container that has an order (list, tensor, array, generator, ...), as plain floats.

    Raises:
        ScorerError: texts (also of digits), a dict or a set, more than one number per entry, or no container.
    """
    given = values
    try:
        if isinstance(values, str | bytes | Mapping | Set):
            raise TypeError(f"{type(values).__name__} is not a list of numbers")
        values = list(values)
        if any(isinstance(value, str | bytes) for value in values):
            raise TypeError("texts are not numbers")
        return [float(value.item() if hasattr(value, "item") else value) for value in values]
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # RuntimeError: a tensor of several numbers
        raise ScorerError(f"{name} must return one number per text, but returned {given!r} ({error}).") from error


def check_timeout(timeout: float | None) -> None:
    """Raise `ValueError` for a time limit that is not a positive number of seconds."""
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, Real) or not timeout > 0:
        raise ValueError(f"`timeout` is {timeout!r}, but must be None or a positive number of seconds.")


def check_values(values, count: int, name: str) -> list[float]:
    """Values as plain floats.

    Raises:
        ScorerError: there are not `count` values, or one of them is NaN or outside [-1, 1].
    """
    values = as_numbers(values, name)
    if len(values) != count:
        raise ScorerError(f"{name} returned {len(values)} values for {count} texts. Return one per text, in order.")
    for value in values:
        if math.isnan(value):
            raise ScorerError(f"{name} returned NaN. Return a number between -1 and 1 for every text.")
        if not -1 - _ROUNDING <= value <= 1 + _ROUNDING:
            raise ScorerError(
                f"{name} returned {value}, but a value must lie between -1 and 1. Map your scores to that range, for "
                "example with tanh; `RewardModelScorer` does this for rewards."
            )
    return [min(max(value, -1.0), 1.0) for value in values]


def call_within(seconds: float | None, function: Callable, *args):
    """Call a function, in a separate thread if there is a time limit.

    Raises:
        ScorerError: the call took longer than `seconds`.
    """
    if seconds is None:
        return function(*args)
    outcome: dict[str, Any] = {}

    def call() -> None:
        try:
            outcome["value"] = function(*args)
        except BaseException as error:
            outcome["error"] = error

    # A daemon thread: Python cannot stop a function that hangs, but the program can exit without it.
    thread = threading.Thread(target=call, daemon=True, name="rain-scorer")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise ScorerError(f"The scorer did not answer within {seconds} seconds. Raise `timeout`, or make it faster.")
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]
