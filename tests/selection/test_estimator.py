"""The best-of-n estimator against all choices, one by one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_interdistill.scoring.best_of_n import best_of_n_kl, best_of_n_scores, over_optimization_curve


def by_hand(proxy, gold, n) -> float:
    """The mean over all choices; among equally good ones the mean of their gold scores."""
    picked = []
    for choice in itertools.combinations(range(len(proxy)), n):
        best = max(proxy[i] for i in choice)
        winners = [gold[i] for i in choice if proxy[i] == best]
        picked.append(sum(winners) / len(winners))
    return sum(picked) / len(picked)


scores = st.lists(st.tuples(st.integers(0, 4), st.floats(-5, 5)), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(scores, st.data())
def test_equals_all_choices(samples, data):
    """Proxy scores of 0 to 4: ties are common."""
    proxy, gold = [float(a) for a, _ in samples], [b for _, b in samples]
    n = data.draw(st.integers(1, len(samples)))
    assert best_of_n_scores(proxy, gold, n) == pytest.approx(by_hand(proxy, gold, n), abs=1e-9)


def test_many_prompts_at_once():
    generator = np.random.default_rng(0)
    proxy, gold = generator.normal(size=(2, 5, 9))
    for n in (1, 2, 5, 9):
        expected = [by_hand(list(a), list(b), n) for a, b in zip(proxy, gold, strict=True)]
        assert best_of_n_scores(proxy, gold, n) == pytest.approx(expected)
    assert best_of_n_scores(proxy, gold, 1) == pytest.approx(gold.mean(1))
    assert best_of_n_scores(proxy, gold, 9) == pytest.approx(gold[np.arange(5), proxy.argmax(1)])


def test_large_numbers_of_samples_stay_finite():
    proxy = np.random.default_rng(0).normal(size=20_000)
    value = best_of_n_scores(proxy, proxy, 1000)
    assert 3.0 < value < 3.5  # the expected maximum of 1,000 standard normals is 3.24
    assert best_of_n_scores(proxy, np.ones(20_000), 1000) == pytest.approx(1.0)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_kl_is_that_of_the_best_of_n_policy(n):
    """Among K equally likely samples without ties the best of n is the i-th with (i^n - (i-1)^n) / K^n."""
    count = 20_000
    rank = np.arange(1, count + 1) / count
    chosen = np.diff(np.concatenate([[0.0], rank**n]))
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.nansum(chosen * np.log(chosen * count))
    assert best_of_n_kl(n) == pytest.approx(kl, abs=1e-3)


def test_the_curve_shows_over_optimization():
    """A proxy whose highest scores are its errors: gold rises, then falls, while the proxy rises."""
    generator = np.random.default_rng(0)
    proxy = generator.normal(size=(50, 64))
    gold = np.where(proxy > 2.0, -3.0, proxy)
    points = over_optimization_curve(proxy, gold)
    assert [point["n"] for point in points] == [1, 2, 4, 8, 16, 32, 64]
    assert [point["kl"] for point in points] == [best_of_n_kl(point["n"]) for point in points]
    assert all(a["proxy"] < b["proxy"] for a, b in itertools.pairwise(points))
    heights = [point["gold"] for point in points]
    assert heights[0] < max(heights) > heights[-1] + 1
    assert points[2]["gold"] == pytest.approx(best_of_n_scores(proxy, gold, 4).mean())
    assert points[2]["gold_se"] == pytest.approx(best_of_n_scores(proxy, gold, 4).std(ddof=1) / math.sqrt(50))
    gains = best_of_n_scores(proxy, gold, 4) - gold.mean(1)  # paired: a random choice of the same prompt
    assert points[2]["gold_gain"] == pytest.approx(gains.mean())
    assert points[2]["gold_gain_se"] == pytest.approx(gains.std(ddof=1) / math.sqrt(50))
    assert points[0]["gold_gain"] == points[0]["gold_gain_se"] == points[0]["proxy_gain_se"] == 0.0
    ragged = over_optimization_curve([proxy[0], proxy[1][:5]], [gold[0], gold[1][:5]])
    assert [point["n"] for point in ragged] == [1, 2, 4, 5]
    assert [point["n"] for point in over_optimization_curve(proxy, gold, ns=[3])] == [3]


@pytest.mark.parametrize(
    ("proxy", "gold", "n", "message"),
    [
        ([1.0, 2.0], [1.0], 1, r"shape \(2,\), `gold` \(1,\)"),
        ([1.0, 2.0], [1.0, 2.0], 3, "`n` is 3, but must be a whole number from 1 to 2"),
        ([1.0, 2.0], [1.0, 2.0], 0, "`n` is 0"),
        ([1.0, math.nan], [1.0, 2.0], 1, "NaN or infinite"),
    ],
)
def test_bad_input_is_explained(proxy, gold, n, message):
    with pytest.raises(ValueError, match=message):
        best_of_n_scores(proxy, gold, n)
    with pytest.raises(ValueError, match="0 prompts"):
        over_optimization_curve([], [])
