"""Intervals of means over the items of several subsets; pure functions.

A score is a sum of subsets' means, each with its weight. Every subset gets an interval of its own: exact where an item
is right, wrong or half right, else of the bootstrap. Those of a sum are combined from these, so that a subset of few
items does not make it too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..utils.binomial import share_interval, unseen_share

FEW_ITEMS = 10  # a bootstrap of fewer says little of others
_DIGITS = 12  # of values that count as equal


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval, over other items of the same subsets.

    Args:
        value: of all items. low, high: the interval. items: how many it rests on.
    """

    value: float
    low: float
    high: float
    items: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Part:
    """What one subset adds to a score.

    Args:
        values: by item; their mean is what the subset adds, `(items,)`. bounds: the least and the most of an item.
        counted: items that can change it, by default all.
    """

    values: np.ndarray
    bounds: tuple[float, float]
    counted: int | None = None


def mean_of(part: Part, resamples: int) -> Estimate:
    """The mean of a subset.

    The interval is exact (Clopper and Pearson) for shares, where the least is 0 and each item is at either bound or
    half-way. Else it is that of the percentile bootstrap. That one is no narrower than if the share of items of which
    none may be among so many were at either bound.

    Args:
        resamples: of the bootstrap.
    """
    values, (least, most) = part.values, part.bounds
    value, items = float(values.mean()), len(values)
    counted = items if part.counted is None else part.counted
    shares = (values - least) / (most - least)
    if least == 0 and counted == items and np.isin(shares, (0.0, 0.5, 1.0)).all():
        low, high = (least + (most - least) * bound for bound in share_interval(float(shares.sum()), items))
        return Estimate(value, low, high, items)
    low, high = (float(bound) for bound in np.quantile(_bootstrap(values, resamples), (0.025, 0.975)))
    unseen = unseen_share(counted)
    low = min(low, value - unseen * max(value - least, 0.0))
    high = max(high, value + unseen * max(most - value, 0.0))
    return Estimate(value, low, high, counted)


def sum_of(parts: Sequence[Part], resamples: int) -> Estimate:
    """The sum of subsets' means. Its reach on either side is the root of the sum of their squared reaches.

    Source: Zou and Donner, "Construction of confidence limits about effect measures", Statistics in Medicine 27, 2008.
    """
    means = [mean_of(part, resamples) for part in parts]
    value = sum(each.value for each in means)
    below = math.sqrt(sum((each.value - each.low) ** 2 for each in means))
    above = math.sqrt(sum((each.high - each.value) ** 2 for each in means))
    return Estimate(value, value - below, value + above, sum(each.items for each in means))


def _bootstrap(values: np.ndarray, resamples: int) -> np.ndarray:
    """Means of resampled items, `(resamples,)`; the same in every call.

    Items of equal outcomes are drawn together: how many there are of each kind is multinomial.
    """
    kinds, counts = np.unique(values.round(_DIGITS), return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(values), counts / len(values), resamples)
    return drawn @ kinds / len(values)
