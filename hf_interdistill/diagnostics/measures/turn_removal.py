"""Turn removal: how far does the comparison of two answers move when one turn of the conversation is removed?

Source: ours. What moves is the margin, the difference of the two rewards, since that is what a preference says. The
control removes as many tokens in a row from a random place in the prompt. No label is needed. A model that ignores a
turn has exactly 0 % of the change of its control; one that reads all tokens alike about 100 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...utils.wording import FLAG, INCONCLUSIVE, PASS
from ..config import DiagnosisConfig
from .estimates import FEW_PAIRS, Estimate, Finding, bootstrap, mean, percent

PLACES = ("first", "middle", "last")
_SMALL_SHARE, _SMALL_CHANGE = 0.25, 0.05


@dataclass(frozen=True)
class TurnChange:
    """What removing one turn does.

    Args:
        tokens: of the turn, mean.
        change: how far the margin moves (absolute, mean), in standard deviations of the margins.
        control: the same, with as many tokens in a row removed from a random place in the prompt.
        share: `change` divided by `control`; `nan` where the control moves nothing.
    """

    tokens: float
    change: Estimate
    control: Estimate
    share: Estimate


@dataclass(frozen=True)
class TurnRemoval:
    """What removing a turn does, by its place in the prompt.

    Args:
        conversations: pairs whose prompt has two or more turns. first, last: of all of them. middle: of those with
            three or more, `nan` if there are none.
        left_out: the other pairs, by reason.
    """

    conversations: int
    first: TurnChange
    middle: TurnChange
    last: TurnChange
    left_out: dict[str, int]

    def finding(self) -> Finding:
        """`flag`: without the first turn the margin moves by less than a quarter of what its control does, or the
        control too moves it by less than 0.05 standard deviations; `pass`: by more than a quarter; else, and with
        fewer than 10 conversations, `inconclusive`."""
        if self.conversations < FEW_PAIRS:
            return Finding(INCONCLUSIVE, f"Too few conversations to remove a turn from: {self.conversations}.")
        first = self.first
        sentence = (
            f"Without the first turn ({first.tokens:.0f} tokens, mean) the difference of the two rewards moves by "
            f"{first.change.value:.2f} standard deviations of the margins; without as many tokens in a row at a "
            f"random place in the prompt by {first.control.value:.2f}"
        )
        if first.control.high < _SMALL_CHANGE:
            return Finding(FLAG, f"{sentence}. The prompt hardly matters to the comparison.")
        sentence += f". The first is {percent(first.share)} of the second; a model that ignores the turn has 0 %."
        if first.share.high < _SMALL_SHARE:
            return Finding(FLAG, f"{sentence} It hardly reads how the conversation began.")
        return Finding(PASS if first.share.low > _SMALL_SHARE else INCONCLUSIVE, sentence)


def measure_turn_removal(
    margins: np.ndarray,
    removed: np.ndarray,
    controls: np.ndarray,
    tokens: np.ndarray,
    config: DiagnosisConfig,
    left_out: dict[str, int] | None = None,
) -> TurnRemoval:
    """Compare margins with and without turns.

    Args:
        margins: of whole texts, `(conversations,)`.
        removed, controls: without the turn of each of `PLACES`, and without as many tokens at a random place,
            `(conversations, 3)`; `nan` where there is no such turn.
        tokens: of these turns, `(conversations, 3)`. config: of the bootstrap.
        left_out: pairs that are not among them, by reason.
    """
    options: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed}
    spread = float(margins.std()) or 1.0

    def change(place: int) -> TurnChange:
        known = ~np.isnan(removed[:, place])
        turn, control = (np.abs(values[known, place] - margins[known]) / spread for values in (removed, controls))
        return TurnChange(
            tokens=float(tokens[known, place].mean()) if known.any() else np.nan,
            change=bootstrap(mean, turn, **options),
            control=bootstrap(mean, control, **options),
            share=bootstrap(_share, turn, control, **options),
        )

    first, middle, last = map(change, range(len(PLACES)))
    return TurnRemoval(len(margins), first, middle, last, left_out or {})


def _share(turn: np.ndarray, control: np.ndarray) -> np.ndarray:
    total = control.sum(-1)
    return np.where(total > 0, turn.sum(-1) / np.where(total > 0, total, 1.0), np.nan)
