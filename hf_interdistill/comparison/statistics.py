"""Means and paired differences of right and wrong answers, with intervals over pairs and seeds; pure functions.

Two things make an accuracy uncertain: other pairs, and another seed of the training. Both are resampled. A bootstrap
of three seeds is too narrow where seeds differ much, so an `Estimate` is never narrower than the t interval of the
same table (see `t_reach`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..utils.binomial import unseen_share

_PART = 250  # draws at a time, so that what is multiplied stays in the processor's cache
_KEPT = 1 << 23  # weights that are kept for the next call, in numbers (64 MB); more are made anew
_LARGEST_DF = 10_000.0  # of Student's t; beyond it is the normal distribution


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval.

    Args:
        value: mean over pairs and seeds. low, high: the interval. pairs, seeds: what it rests on; with one seed the
            interval is over pairs alone.
    """

    value: float
    low: float
    high: float
    pairs: int
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def right(margins: np.ndarray) -> np.ndarray:
    """1 where the margin is positive, 0 where it is negative, a half for ties."""
    return np.sign(margins) / 2 + 0.5


def mean_outcome(outcomes: Mapping[int, np.ndarray], resamples: int) -> Estimate:
    """The mean of outcomes in [0, 1] over pairs and seeds, such as an accuracy.

    Args:
        outcomes: by seed, `(pairs,)`. resamples: of the bootstrap.
    """
    return _estimate(np.stack(list(outcomes.values())), (0.0, 1.0), resamples)


def paired_difference(mine: Mapping[int, np.ndarray], theirs: Mapping[int, np.ndarray], resamples: int) -> Estimate:
    """Outcomes of one model minus another's on the same pairs, over the seeds that both have.

    Args:
        mine, theirs: outcomes in [0, 1] by seed, `(pairs,)`, the same pairs throughout. resamples: of the bootstrap.

    Raises:
        ValueError: there is no common seed, or the numbers of pairs differ.
    """
    common = sorted(mine.keys() & theirs.keys())
    if not common:
        raise ValueError(f"There is no common seed: one has {sorted(mine)}, the other {sorted(theirs)}.")
    sizes = {len(outcomes[seed]) for outcomes in (mine, theirs) for seed in common}
    if len(sizes) > 1:
        raise ValueError(f"The outcomes are of {sorted(sizes)} pairs, but must be of the same pairs.")
    return _estimate(np.stack([mine[seed] - theirs[seed] for seed in common]), (-1.0, 1.0), resamples)


def _estimate(values: np.ndarray, bounds: tuple[float, float], resamples: int) -> Estimate:
    """The mean of a table `(seeds, pairs)`.

    Its interval is that of the bootstrap, no narrower than the t interval, and no narrower than if the share of pairs
    of which none may be among so many were at either bound (as in `diagnose`).
    """
    seeds, pairs = values.shape
    value, low, high = crossed_bootstrap([values], resamples)
    reach, unseen = t_reach(values), unseen_share(pairs)
    low = min(low, value - reach, value - unseen * (value - bounds[0]))
    high = max(high, value + reach, value + unseen * (bounds[1] - value))
    return Estimate(value, max(low, bounds[0]), min(high, bounds[1]), pairs, seeds)


def crossed_bootstrap(tests: Sequence[np.ndarray], resamples: int) -> tuple[float, float, float]:
    """Mean of tables and the 2.5 % and 97.5 % quantiles of its bootstrap; the mean over several tables is taken.

    Seeds and pairs are drawn anew, independently of each other. Of several tables the same seeds are drawn. Every call
    gives the same numbers. Source: Owen, "The pigeonhole bootstrap", 2007.

    Args:
        tests: one table for each test, `(seeds, pairs)`, with the same seeds.
        resamples: number of draws.
    """
    drawn = np.zeros(resamples)
    for number, values in enumerate(tests):
        seeds, pairs = values.shape
        start = 0
        parts = zip(_weights(seeds, 0, resamples), _weights(pairs, 1 + number, resamples), strict=True)
        for of_seeds, of_pairs in parts:
            part = slice(start, start + len(of_seeds))
            drawn[part] += ((of_seeds @ values) * of_pairs).sum(1) / len(tests)
            start = part.stop
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(np.mean([values.mean() for values in tests])), float(low), float(high)


def _weights(count: int, stream: int, draws: int) -> Iterator[np.ndarray]:
    """How often each of `count` things is drawn, as parts of the whole: `(draws, count)` in parts of rows."""
    if count * draws <= _KEPT:
        kept = _kept_weights(count, stream, draws)
        return (kept[start : start + _PART] for start in range(0, draws, _PART))
    return _new_weights(count, stream, draws)


@lru_cache(maxsize=16)
def _kept_weights(count: int, stream: int, draws: int) -> np.ndarray:
    return np.concatenate(list(_new_weights(count, stream, draws)))


def _new_weights(count: int, stream: int, draws: int) -> Iterator[np.ndarray]:
    generator, shares = np.random.default_rng(stream), np.full(count, 1 / count)
    for start in range(0, draws, _PART):
        yield generator.multinomial(count, shares, min(_PART, draws - start)) / count


def t_reach(values: np.ndarray) -> float:
    """Half the width of the 95 % t interval of a table's mean; 0 with one seed or one pair.

    Seeds and pairs are random effects: the variance of the mean is `(S + P - R) / (seeds * pairs)` with the mean
    squares of seeds, pairs and rest, no less than that of seeds or pairs alone. Degrees of freedom by Satterthwaite,
    Biometrics Bulletin 2, 1946.

    Args:
        values: `(seeds, pairs)`.
    """
    seeds, pairs = values.shape
    if seeds < 2 or pairs < 2:
        return 0.0
    of_seeds, of_pairs = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    rest = values - of_seeds - of_pairs + values.mean()
    squares = (
        float(pairs * of_seeds.var(ddof=1)),
        float(seeds * of_pairs.var(ddof=1)),
        float((rest**2).sum() / ((seeds - 1) * (pairs - 1))),
    )
    whole = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
    if whole <= 0:
        return 0.0
    freedom = (seeds - 1, pairs - 1, (seeds - 1) * (pairs - 1))
    spread = sum(square**2 / each for square, each in zip(squares, freedom, strict=True))
    df = max(whole**2 / spread, min(freedom))
    return t_quantile(df) * math.sqrt(whole / (seeds * pairs))


def t_quantile(df: float) -> float:
    """The 97.5 % quantile of Student's t; `df` at least 1, not necessarily whole.

    With `x = sqrt(df) tan(a)` the density is that of `cos(a) ** (df - 1)`, which is summed.
    """
    df = min(df, _LARGEST_DF)
    angles = np.linspace(0, math.pi / 2, 20_001)
    middle = (angles[1:] + angles[:-1]) / 2
    shares = np.concatenate([[0.0], np.cumsum(np.cos(middle) ** (df - 1))])
    return math.sqrt(df) * math.tan(float(np.interp(0.95 * shares[-1], shares, angles)))
