"""Exact confidence intervals of shares, which stay honest with few rows."""

from __future__ import annotations

import math

import numpy as np


def share_interval(successes: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a share.

    Source: Clopper and Pearson, Biometrika 26, 1934: the shares at which `successes` or more (for the upper bound: or
    fewer) have half of the error's probability. It covers the true share at least as often as it says, for any number
    of trials.

    Args:
        successes: how often it happened, 0 to `trials`. Halves (ties) are counted as none for the lower bound, as
            whole ones for the upper bound.
        trials: how many there were.
        confidence: of the interval, between 0 and 1.

    Returns:
        lower and upper bound; `nan` without trials.

    Raises:
        ValueError: successes that are negative or more than the trials.
    """
    if not trials:
        return math.nan, math.nan
    if not 0 <= successes <= trials:
        raise ValueError(f"There are {successes} successes in {trials} trials, but must be 0 to {trials}.")
    error = (1 - confidence) / 2
    low, high = math.floor(successes), math.ceil(successes)
    return _lower_bound(low, trials, error), 1 - _lower_bound(trials - high, trials, error)


def accuracy_interval(accuracy: float, pairs: int) -> tuple[float, float]:
    """Exact 95 % interval of an accuracy in which ties count half; they count against both bounds."""
    return share_interval(round(2 * accuracy * pairs) / 2, pairs)


def unseen_share(trials: int, confidence: float = 0.95) -> float:
    """The largest share of cases that may be absent from this many trials: the upper bound of a share of 0 (1 if there
    are no trials). With 10 it is 0.31, with 72 it is 0.05."""
    return 1 - ((1 - confidence) / 2) ** (1 / trials) if trials else 1.0


def _lower_bound(successes: int, trials: int, error: float) -> float:
    """The share at which `successes` or more have the probability `error`."""
    if not successes:
        return 0.0
    counts = np.arange(successes, trials + 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    choices = factorials[trials] - factorials[counts] - factorials[trials - counts]
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        logs = choices + counts * math.log(share) + (trials - counts) * math.log1p(-share)
        if np.exp(logs).sum() < error:
            low = share
        else:
            high = share
    return low
