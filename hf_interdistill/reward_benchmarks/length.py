"""What length has to do with choices: the accuracy where lengths are alike, and how often the longer answer wins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..utils.wording import INCONCLUSIVE, verdict_of
from .items import Item, Rewards, is_above
from .statistics import FEW_ITEMS, Estimate, Part, mean_of

ALL = "all"


def is_matched(item: Item, pair: tuple[int, int], share: float) -> bool:
    """Whether two answers differ in length by at most this share of the longer one, in characters."""
    one, other = (len(item.candidates[number]) for number in pair)
    return abs(one - other) <= share * max(one, other)


def length_matched(
    items: Sequence[Item], rewards: Sequence[Rewards], share: float, resamples: int
) -> dict[str, tuple[Estimate, int]]:
    """Accuracy over the pairs of a right and a wrong answer of about equal lengths; a tie is half right.

    Args:
        items: each with its `pairs`. rewards: of a model. share: see `is_matched`. resamples: of the bootstrap.

    Returns:
        For each subset and for `all` of them, pooled: the accuracy with its interval, and the number of pairs. The
        accuracy is NaN where there is no pair.
    """
    rows = []
    for item, values in zip(items, rewards, strict=True):
        pairs = [pair for pair in item.pairs if is_matched(item, pair, share)]
        rows.append((item.subset, [is_above(values[right], values[wrong], True) for right, wrong in pairs]))
    names = [*dict.fromkeys(subset for subset, _ in rows), ALL]
    return {name: _accuracy([right for subset, right in rows if name in (subset, ALL)], resamples) for name in names}


def _accuracy(rows: Sequence[Sequence[float]], resamples: int) -> tuple[Estimate, int]:
    """The mean over all pairs, whose interval is over items: pairs of one item are not separate items."""
    counted = [row for row in rows if row]
    pairs = sum(map(len, counted))
    if not pairs:
        return Estimate(np.nan, np.nan, np.nan, 0), 0
    weights = np.array([len(row) for row in counted]) / (pairs / len(counted))
    scores = np.array([sum(row) / len(row) for row in counted])
    mean = float((weights * scores).mean())
    return mean_of(Part(mean + weights * (scores - mean), (0.0, 1.0)), resamples), pairs


def chance_shown(accuracy: Estimate) -> str:
    """`pass`: an accuracy over pairs is better than chance; `flag`: worse; else, and with too few items,
    `inconclusive`."""
    return INCONCLUSIVE if accuracy.items < FEW_ITEMS else verdict_of(accuracy.low, accuracy.high, level=0.5)


def longer_preferred(items: Sequence[Item], rewards: Sequence[Rewards]) -> float:
    """How often a model prefers the longer one of a right and a wrong answer, ties half; NaN if all are equally long.

    0 or 1 is a model that sees nothing but the length.
    """
    chosen = []
    for item, values in zip(items, rewards, strict=True):
        for pair in item.pairs:
            short, long = sorted(pair, key=lambda number: len(item.candidates[number]))
            if len(item.candidates[short]) != len(item.candidates[long]):
                chosen.append(is_above(values[long], values[short], True))
    return float(np.mean(chosen)) if chosen else float("nan")
