"""Numbers with their uncertainty, and their wording."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...utils.binomial import share_interval, unseen_share

_BLOCK = 1 << 21  # resampled numbers in memory at a time

_NO_BREAK = "\N{NO-BREAK SPACE}"

FEW_PAIRS = 10  # a bootstrap of fewer says little of the values of others


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; `nan` where there is nothing to compute it from.

    Args:
        value: from all pairs. low, high: 95 % interval, exact for shares of pairs, else 2.5 % and 97.5 % of the
            bootstrap. pairs: how many pairs it rests on.
    """

    value: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True)
class Finding:
    """The result of a measure for a model: `pass`, `flag` or `inconclusive`, and a sentence for a reader."""

    verdict: str
    sentence: str


def share_of(hits: np.ndarray) -> Estimate:
    """The share of pairs in which something holds, with its exact interval.

    Args:
        hits: 1 where it holds, 0 where not, a half for ties; shape `(pairs,)`.
    """
    pairs, held = len(hits), float(hits.sum())
    return Estimate(held / pairs if pairs else np.nan, *share_interval(held, pairs), pairs)


def accuracy_of(margins: np.ndarray) -> Estimate:
    """`accuracy`, with its exact interval.

    Args:
        margins: shape `(pairs,)`.
    """
    decided = share_of((margins[margins != 0] > 0) * 1.0)
    return Estimate(decided.value, decided.low, decided.high, len(margins))


def bootstrap(
    statistic: Callable[..., np.ndarray],
    *columns: np.ndarray,
    resamples: int,
    seed: int,
    bounds: tuple[float, float] | None = None,
    smallest_group: int | None = None,
) -> Estimate:
    """Percentile bootstrap over pairs. Source: Efron, 1979.

    Args:
        statistic: maps columns of shape `(..., pairs)` to numbers of shape `(...)`; `nan` where undefined.
        columns: one value per pair each, shape `(pairs,)`.
        bounds: the least and the most that the statistic, a mean over pairs, can be. A bootstrap of few pairs that
            are all alike is as narrow as if there were many. With bounds the interval is no narrower than if the
            share of pairs of which none may be among so many (`unseen_share`) were at either bound. Source: ours.
        smallest_group: pairs that count for that; by default all.
    """
    pairs = len(columns[0])
    if not pairs:
        return Estimate(np.nan, np.nan, np.nan, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(*columns))
        generator = np.random.default_rng(seed)
        block, drawn = max(1, _BLOCK // pairs), []
        for start in range(0, resamples, block):
            chosen = generator.integers(pairs, size=(min(block, resamples - start), pairs))
            drawn.append(statistic(*(column[chosen] for column in columns)))
    values = np.concatenate(drawn)
    values = values[~np.isnan(values)]
    low, high = np.quantile(values, (0.025, 0.975)) if values.size else (np.nan, np.nan)
    if bounds is not None:
        unseen = unseen_share(pairs if smallest_group is None else smallest_group)
        low, high = min(low, value - unseen * (value - bounds[0])), max(high, value + unseen * (bounds[1] - value))
    return Estimate(value, float(low), float(high), pairs)


def mean(values: np.ndarray) -> np.ndarray:
    return values.mean(-1)


def accuracy(margins: np.ndarray) -> np.ndarray:
    """Share of pairs with a positive margin among those that are not ties; `nan` if all are."""
    return (margins > 0).sum(-1) / (margins != 0).sum(-1)


def right(margins: np.ndarray) -> np.ndarray:
    """1 where the margin is positive, 0 where it is negative, a half for ties: for comparisons."""
    return np.sign(margins) / 2 + 0.5


def percent(estimate: Estimate) -> str:
    """For a sentence: `63.4 % (58.1 to 68.2)`."""
    if np.isnan(estimate.value):
        return "not defined (no pair is decided)"
    return f"{100 * estimate.value:.1f}{_NO_BREAK}% ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def points(estimate: Estimate) -> str:
    """A difference in percentage points, for a sentence."""
    if np.isnan(estimate.value):
        return "not defined"
    return f"{100 * estimate.value:.1f} points ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def lost(estimate: Estimate) -> str:
    """A loss of accuracy, for a sentence; a negative one is a gain, and none is neither.

    `a loss of 3.0 points (1.0 to 5.0)`.
    """
    if estimate.value < 0:
        gain = Estimate(-estimate.value, -estimate.high, -estimate.low, estimate.pairs)
        return f"a gain of {points(gain)}"
    return f"a loss of {points(estimate)}"


def against_chance(accuracy: Estimate) -> str:
    """An accuracy against chance, for a sentence: better, worse, or neither."""
    if accuracy.low > 0.5:
        return "better than chance"
    return "worse than chance" if accuracy.high < 0.5 else "these pairs do not tell it from chance"
