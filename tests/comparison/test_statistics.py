"""Means and paired differences over pairs and seeds: by plain arithmetic, and their coverage on simulated data."""

from __future__ import annotations

import itertools
import math
import statistics as plain

import numpy as np
import pytest

from hf_interdistill.comparison import statistics
from hf_interdistill.comparison.statistics import (
    crossed_bootstrap,
    mean_outcome,
    paired_difference,
    right,
    t_quantile,
    t_reach,
)
from hf_interdistill.utils.binomial import unseen_share


def outcomes(seeds: int, pairs: int, seed: int = 0, share: float = 0.6) -> dict[int, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {40 + number: (draw.random(pairs) < share) * 1.0 for number in range(seeds)}


def test_right_counts_ties_half():
    assert right(np.array([2.0, -0.1, 0.0])).tolist() == [1.0, 0.0, 0.5]


def test_the_bootstrap_is_that_of_all_draws_written_out():
    """Two seeds and three pairs: each of the 4 times 27 draws is as likely, and its mean is worked out by hand."""
    table = [[1.0, 0.0, -1.0], [1.0, 1.0, 0.0]]
    means = [
        plain.fmean(table[s][p] for s in seeds for p in pairs)
        for seeds in itertools.product(range(2), repeat=2)
        for pairs in itertools.product(range(3), repeat=3)
    ]
    value, low, high = crossed_bootstrap([np.array(table)], 20_000)
    assert value == pytest.approx(1 / 3)
    ordered = sorted(means)
    assert low == pytest.approx(ordered[round(0.025 * len(means))], abs=0.05)
    assert high == pytest.approx(ordered[round(0.975 * len(means)) - 1], abs=0.05)


def test_several_tests_share_their_seeds_and_not_their_pairs():
    table = np.stack(list(outcomes(3, 50).values()))
    only_seeds = np.repeat(table.mean(1, keepdims=True), 50, axis=1)
    assert crossed_bootstrap([only_seeds, only_seeds], 500) == pytest.approx(crossed_bootstrap([only_seeds], 500))
    only_pairs = np.repeat(table.mean(0, keepdims=True), 3, axis=0)
    _, low, high = crossed_bootstrap([only_pairs], 2000)
    _, low_of_two, high_of_two = crossed_bootstrap([only_pairs, only_pairs], 2000)
    assert high_of_two - low_of_two == pytest.approx((high - low) / np.sqrt(2), rel=0.1)


def test_weights_that_are_too_many_to_keep_are_the_same(monkeypatch):
    table = np.stack(list(outcomes(2, 30).values()))
    kept = crossed_bootstrap([table], 600)
    monkeypatch.setattr(statistics, "_KEPT", 0)
    assert crossed_bootstrap([table], 600) == kept


@pytest.mark.parametrize("df, expected", [(1, 12.7062), (2, 4.30265), (4, 2.77645), (30, 2.04227)])
def test_quantiles_of_students_t(df, expected):
    """As in printed tables."""
    assert t_quantile(df) == pytest.approx(expected, rel=1e-4)
    assert t_quantile(1e9) == pytest.approx(1.95996, abs=1e-3)


def test_quantiles_between_whole_degrees_of_freedom():
    """The density, summed from 0 to the quantile, is 0.475."""
    df, count = 2.5, 100_000
    quantile = t_quantile(df)
    x = (np.arange(count) + 0.5) * quantile / count
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    density = scale * (1 + x**2 / df) ** (-(df + 1) / 2)
    assert density.sum() * quantile / count == pytest.approx(0.475, abs=1e-5)


def test_the_t_interval_by_hand():
    """Two seeds, four pairs: mean squares with plain sums; the seeds' own is the largest part."""
    table = np.array([[1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    # Means: seeds 3/4 and 1/4, pairs 1/2, 1/2, 0, 1, all 1/2.
    of_seeds = 4 * ((1 / 4) ** 2 + (1 / 4) ** 2) / 1
    of_pairs = 2 * (0 + 0 + 1 / 4 + 1 / 4) / 3
    rest = ((1 / 4) ** 2 * 4 + (1 / 4) ** 2 * 4) / 3  # each cell is a quarter from what its seed and pair say
    whole = of_seeds + of_pairs - rest
    df = max(whole**2 / (of_seeds**2 / 1 + of_pairs**2 / 3 + rest**2 / 3), 1)
    assert t_reach(table) == pytest.approx(t_quantile(df) * (whole / 8) ** 0.5)
    assert t_reach(table[:1]) == t_reach(table[:, :1]) == 0
    assert t_reach(np.ones((3, 5))) == 0


def test_a_difference_is_of_common_seeds_and_its_interval_holds_all_parts():
    mine, theirs = outcomes(3, 200), outcomes(2, 200, seed=1)
    found = paired_difference(mine, theirs, 1000)
    table = np.stack([mine[seed] - theirs[seed] for seed in (40, 41)])
    value, low, high = crossed_bootstrap([table], 1000)
    assert found.value == pytest.approx(float(table.mean())) and (found.pairs, found.seeds) == (200, 2)
    assert found.low == pytest.approx(min(low, value - t_reach(table), value - unseen_share(200) * (value + 1)))
    assert found.high == pytest.approx(max(high, value + t_reach(table), value + unseen_share(200) * (1 - value)))
    with pytest.raises(ValueError, match=r"There is no common seed: one has \[40\], the other \[7\]"):
        paired_difference({40: table[0]}, {7: table[0]}, 10)
    with pytest.raises(ValueError, match=r"of \[199, 200\] pairs, but must be of the same pairs"):
        paired_difference({40: table[0]}, {40: table[0][1:]}, 10)


def test_equal_models_and_few_pairs_claim_little():
    """A bootstrap of a table without variation has no width, however few pairs there are."""
    same = paired_difference(outcomes(3, 300), outcomes(3, 300), 200)
    assert same.value == 0 and -0.02 < same.low < -0.01 and 0.01 < same.high < 0.02
    few = mean_outcome({1: np.ones(5)}, 200)
    assert (few.value, few.high, few.seeds) == (1, 1, 1) and few.low == pytest.approx(1 - unseen_share(5))


def simulated(draw, seeds: int, pairs: int, of_seeds: float, of_pairs: float, rest: float):
    """Outcomes of two models that are equally good on the whole, by seed."""
    hardness = draw.normal(size=pairs)
    models = []
    for _ in range(2):
        own = hardness + of_pairs * draw.normal(size=pairs)
        rewards = own + of_seeds * draw.normal(size=(seeds, 1)) + rest * draw.normal(size=(seeds, pairs))
        models.append({seed: right(row) for seed, row in enumerate(rewards)})
    return models


@pytest.mark.parametrize(
    "seeds, of_seeds, of_pairs, rest, least",
    [(1, 0, 0.4, 0.3, 0.92), (3, 0, 0.4, 0.3, 0.93), (3, 0.05, 0.3, 0.3, 0.93), (3, 0.3, 0.3, 0.3, 0.86)],
)
def test_coverage_of_no_difference(seeds, of_seeds, of_pairs, rest, least):
    """Of 300 simulated comparisons of equal models; the last has seeds that differ more than anything else."""
    draw, held, of_bootstrap = np.random.default_rng(5), 0, 0
    for _ in range(300):
        mine, theirs = simulated(draw, seeds, 120, of_seeds, of_pairs, rest)
        held += not paired_difference(mine, theirs, 500).excludes_zero
        _, low, high = crossed_bootstrap([np.stack([mine[seed] - theirs[seed] for seed in mine])], 500)
        of_bootstrap += low <= 0 <= high
    assert held / 300 >= least
    if of_seeds == 0.3:  # what the t interval is for
        assert of_bootstrap / 300 < 0.82


def test_a_real_difference_is_found():
    draw = np.random.default_rng(1)
    mine, theirs = ({seed: (draw.random(300) < share) * 1.0 for seed in range(3)} for share in (0.85, 0.55))
    found = paired_difference(mine, theirs, 1000)
    assert found.excludes_zero and 0.1 < found.low < 0.3 < found.high
