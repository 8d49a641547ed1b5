"""Exact intervals of shares."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from hf_interdistill.utils.binomial import share_interval, unseen_share


def at_least(successes: int, trials: int, share: float) -> float:
    """The probability of so many successes or more, in exact fractions."""
    p = Fraction(share)
    return float(sum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(successes, trials + 1)))


@pytest.mark.parametrize(("successes", "trials"), [(6, 7), (1, 7), (3, 8), (17, 20), (60, 100), (1, 1)])
def test_the_bounds_leave_half_of_the_error_each(successes, trials):
    low, high = share_interval(successes, trials)
    assert at_least(successes, trials, low) == pytest.approx(0.025, rel=1e-6)
    if successes < trials:
        assert 1 - at_least(successes + 1, trials, high) == pytest.approx(0.025, rel=1e-6)
    else:
        assert high == 1.0


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),  # published tables of Clopper and Pearson's interval
    [(0, 10, (0.0, 0.3085)), (10, 10, (0.6915, 1.0)), (5, 10, (0.1871, 0.8129)), (6, 7, (0.4213, 0.9964))],
)
def test_known_intervals(successes, trials, expected):
    assert share_interval(successes, trials) == pytest.approx(expected, abs=5e-5)


def test_many_trials_need_no_large_numbers():
    low, high = share_interval(52_000, 100_000)
    error = 1.96 * math.sqrt(0.52 * 0.48 / 100_000)
    assert (low, high) == pytest.approx((0.52 - error, 0.52 + error), abs=2e-5)


def test_ties_count_against_both_bounds():
    assert share_interval(5.5, 7) == (share_interval(5, 7)[0], share_interval(6, 7)[1])


def test_nothing_and_too_much():
    assert all(map(math.isnan, share_interval(0, 0)))
    with pytest.raises(ValueError, match="8 successes in 7 trials, but must be 0 to 7"):
        share_interval(8, 7)


def test_what_may_be_unseen():
    assert unseen_share(10) == pytest.approx(share_interval(0, 10)[1])
    assert unseen_share(71) > 0.05 > unseen_share(73) and unseen_share(0) == 1.0
