"""Intervals of benchmarks' scores and paired differences, against exact sums and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.benchmarks import exact_interval, reward_bench_2_item, reward_bench_items, sample_items

from hf_interdistill.reward_benchmarks import BENCHMARKS
from hf_interdistill.reward_benchmarks.analysis import analyze
from hf_interdistill.reward_benchmarks.items import Row
from hf_interdistill.reward_benchmarks.outcomes import OutcomeTable
from hf_interdistill.reward_benchmarks.statistics import Part, mean_of, sum_of


@pytest.mark.parametrize(("right", "trials"), [(0, 5), (3, 5), (70, 100), (100, 100)])
def test_shares_have_exact_intervals(right, trials):
    found = mean_of(Part(np.array([0.2] * right + [0.0] * (trials - right)), (0.0, 0.2)), 10)
    assert (found.value, found.items) == (pytest.approx(0.2 * right / trials), trials)
    assert (found.low, found.high) == pytest.approx([0.2 * bound for bound in exact_interval(right, trials)], abs=1e-9)


def test_other_outcomes_have_the_percentiles_of_the_bootstrap():
    draw = np.random.default_rng(3)
    values = draw.choice([0, 1 / 3, 1], size=300, p=[0.3, 0.3, 0.4])
    found = mean_of(Part(values, (0.0, 1.0)), 4000)
    plain = [draw.choice(values, size=300).mean() for _ in range(4000)]
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(np.quantile(plain, (0.025, 0.975)), abs=0.006)
    assert found == mean_of(Part(values, (0.0, 1.0)), 4000)  # the same in every call


def test_items_that_are_all_alike_do_not_make_a_bootstrap_certain():
    for items in (1, 5, 20):
        found = mean_of(Part(np.zeros(items), (-1.0, 1.0)), 100)
        unseen = 1 - 0.025 ** (1 / items)  # the exact upper bound of none among so many
        assert (found.low, found.high) == pytest.approx((-unseen, unseen))


def test_sums_combine_the_reaches_of_their_parts():
    parts = [Part(np.array([0.25] * 7 + [0.0] * 3), (0.0, 0.25)), Part(np.array([0.75] * 2 + [0.0] * 2), (0.0, 0.75))]
    found = sum_of(parts, 10)
    value = 0.25 * 0.7 + 0.75 * 0.5
    (low, high), (low_2, high_2) = exact_interval(7, 10), exact_interval(2, 4)
    assert found.value == pytest.approx(value) and found.items == 14
    assert found.low == pytest.approx(value - math.hypot(0.25 * (0.7 - low), 0.75 * (0.5 - low_2)))
    assert found.high == pytest.approx(value + math.hypot(0.25 * (high - 0.7), 0.75 * (high_2 - 0.5)))


def test_intervals_of_totals_cover_the_truth():
    """300 benchmarks of three small subsets; 95 % should cover, and 92 % is 2.4 standard errors below."""
    draw, truth = np.random.default_rng(0), (0.9, 0.6, 0.3)
    covered = 0
    for _ in range(300):
        parts = [Part((draw.random(n) < p) * 1.0 / 3, (0.0, 1 / 3)) for n, p in zip((8, 20, 50), truth, strict=True)]
        found = sum_of(parts, 10)
        covered += found.low <= np.mean(truth) <= found.high
    assert covered / 300 >= 0.92


@pytest.mark.parametrize("name", BENCHMARKS)
def test_outcomes_of_items_add_up_to_every_score(name):
    items, draw = sample_items(name), np.random.default_rng(0)
    table = OutcomeTable(BENCHMARKS[name], items, 50)
    mine, theirs = ([tuple(draw.normal(size=len(item.candidates))) for item in items] for _ in range(2))
    scores = [BENCHMARKS[name].aggregate(items, rewards).scores() for rewards in (mine, theirs)]
    outcomes = [table.outcomes(rewards) for rewards in (mine, theirs)]
    assert table.names == list(scores[0])
    for score in table.names:
        found = table.score(score, outcomes[0])
        assert found.value == pytest.approx(scores[0][score]) and found.low <= found.value <= found.high
        difference = table.difference(score, *outcomes)
        assert difference.value == pytest.approx(scores[0][score] - scores[1][score])
        assert difference.low <= difference.value <= difference.high


def test_rows_with_more_pairs_weigh_more():
    """PPE pools the pairs of all rows; a row without a pair counts for best of k alone."""

    def item(scores, pairs):
        answers = {f"response_{number}": "a" for number in range(1, len(scores) + 1)}
        row = {"prompt": "p", "scores": scores, "sampled_conflict_pairs": pairs, **answers}
        return BENCHMARKS["ppe_correctness"].parse(Row("file, line 1", "math", row))

    items = [item([True, False, False], [[0, 1], [0, 2]]), item([True, False], [[0, 1]]), item([True, True], [])]
    rewards = [(3, 2, 1), (1, 2), (1, 2)]
    table = OutcomeTable(BENCHMARKS["ppe_correctness"], items, 50)
    outcomes = table.outcomes(rewards)
    assert table.score("math", outcomes).value == pytest.approx(2 / 3)
    assert table.score("[best_of_k]", outcomes).value == pytest.approx(2 / 3)
    assert (table.score("math", outcomes).items, table.score("[best_of_k]", outcomes).items) == (2, 3)


def test_both_rows_of_a_tie_are_one_item():
    items = [
        reward_bench_2_item("Ties", [8], [3], "ref:0"),
        reward_bench_2_item("Math", [8], [3, 2, 1]),
        reward_bench_2_item("Ties", [9, 7], [3], "tied:0"),
    ]
    table = OutcomeTable(BENCHMARKS["reward_bench_2"], items, 50)
    assert table.groups == [[0, 2], [1]]
    assert table.score("Ties", table.outcomes([(2, 1), (4, 3, 2, 1), (3, 2.5, 1)])).items == 1


def rewards_of(is_right):
    return [(1.0, 0.0) if right else (0.0, 1.0) for right in is_right]


def test_differences_are_paired():
    """Right in 60 and 54 of 100, which would not differ unpaired; but `b` is right only where `a` is."""
    items = reward_bench_items(*[("donotanswer", 3, 3)] * 100)
    rewards = {"a": rewards_of([i < 60 for i in range(100)]), "b": rewards_of([i < 54 for i in range(100)])}
    rewards["c"] = rewards_of([i >= 46 for i in range(100)])  # right as often as b, elsewhere
    analysis = analyze(BENCHMARKS["reward_bench"], items, rewards)
    found = analysis.models["a"].to_dict()["differences"]
    assert found["b"]["total"]["verdict"] == "pass" and found["c"]["total"]["verdict"] == "inconclusive"
    assert found["b"]["total"]["value"] == pytest.approx(0.06) == found["c"]["total"]["value"]
    mirrored = analysis.models["b"].to_dict()["differences"]["a"]["total"]
    assert mirrored["value"] == pytest.approx(-0.06) and mirrored["verdict"] == "flag"
    same = analysis.models["b"].differences["c"]["total"]
    assert same.value == 0 and same.low < 0 < same.high


def test_models_that_do_not_beat_the_best_baseline_are_marked():
    """60 of 80 chosen answers are the shorter ones."""
    items = reward_bench_items(*[("donotanswer", 1, 5)] * 60, *[("donotanswer", 5, 1)] * 20)
    right = {"good": 78, "little better": 62, "worse": 55}
    rewards = {name: rewards_of([i < number for i in range(80)]) for name, number in right.items()}
    rewards["length"] = [tuple(-float(len(text)) for text in item.candidates) for item in items]
    analysis = analyze(BENCHMARKS["reward_bench"], items, rewards)
    marks = {name: model.against_baseline["total"].mark for name, model in analysis.models.items()}
    assert marks == {"good": "", "little better": "?", "worse": "!", "length": "!"}
    assert {model.against_baseline["total"].baseline for model in analysis.models.values()} == {"shortest"}
    assert analysis.models["length"].longer_preferred == 0
    assert analysis.minus_chance["shortest"]["total"].low > 0 and analysis.minus_chance["longest"]["total"].high < 0
    assert not analysis.minus_chance["chance"]["total"].excludes_zero
