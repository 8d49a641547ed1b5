"""Accuracy over pairs of about equal lengths, by hand."""

from __future__ import annotations

import math

import pytest
from support.benchmarks import exact_interval, reward_bench_2_item, reward_bench_items

from hf_interdistill.reward_benchmarks.length import chance_shown, is_matched, length_matched, longer_preferred


@pytest.mark.parametrize(
    ("one", "other", "share", "is_alike"),
    [
        (10, 9, 0.1, True),
        (9, 10, 0.1, True),
        (10, 8, 0.1, False),
        (7, 7, 0.0, True),
        (7, 8, 0.0, False),
        (0, 0, 0, True),
        (0, 9, 1.0, True),
        (0, 1, 0.99, False),
    ],
)
def test_which_lengths_are_alike(one, other, share, is_alike):
    (item,) = reward_bench_items(("donotanswer", one, other))
    assert is_matched(item, (0, 1), share) == is_alike


def test_accuracy_is_over_the_pairs_of_equal_lengths_alone():
    rows = [("donotanswer", 20, 19)] * 12 + [("donotanswer", 20, 5)] * 30 + [("hep-go", 3, 3)] * 2
    items = reward_bench_items(*rows)
    rewards = [(1, 0)] * 9 + [(0, 1)] * 3 + [(0, 1)] * 30 + [(1, 1), (1, 0)]
    found = length_matched(items, rewards, 0.1, 100)
    accuracy, pairs = found["donotanswer"]
    assert (accuracy.value, accuracy.items, pairs) == (0.75, 12, 12)
    assert (accuracy.low, accuracy.high) == pytest.approx(exact_interval(9, 12))
    assert found["hep-go"][0].value == 0.75 and chance_shown(found["hep-go"][0]) == "inconclusive"  # a tie is half
    assert found["all"][0].value == pytest.approx((9 + 1.5) / 14) and found["all"][1] == 14
    none = length_matched(items[12:42], rewards[12:42], 0.1, 100)["all"]
    assert math.isnan(none[0].value) and none[1] == 0 and chance_shown(none[0]) == "inconclusive"


def test_pairs_of_one_prompt_are_one_item():
    """Three pairs a row: twelve rows are no 36 independent pairs."""
    items = [reward_bench_2_item("Math", [10], [10, 10, 3])] * 12
    rewards = [(2, 1, 1, 9)] * 9 + [(1, 2, 0, 0)] * 3
    accuracy, pairs = length_matched(items, rewards, 0.1, 2000)["Math"]
    assert (accuracy.value, accuracy.items, pairs) == (pytest.approx((9 * 2 + 3) / 24), 12, 24)
    reach = 1.96 * math.sqrt((9 * 1 + 3 * 0.25) / 12 - accuracy.value**2) / math.sqrt(12)
    assert accuracy.value - accuracy.low > 0.8 * reach and accuracy.high - accuracy.value > 0.5 * reach


def test_what_accuracies_show():
    items = reward_bench_items(*[("donotanswer", 5, 5)] * 40)
    words = {}
    for right in (35, 22, 5):
        rewards = [(1, 0)] * right + [(0, 1)] * (40 - right)
        words[right] = chance_shown(length_matched(items, rewards, 0.1, 100)["all"][0])
    assert words == {35: "pass", 22: "inconclusive", 5: "flag"}


def test_how_often_the_longer_answer_is_preferred():
    items = reward_bench_items(("hep-go", 5, 2), ("hep-go", 2, 5), ("hep-go", 2, 5), ("hep-go", 4, 4))
    assert longer_preferred(items, [(1, 0), (0, 1), (1, 1), (1, 0)]) == pytest.approx((1 + 1 + 0.5) / 3)
    assert math.isnan(longer_preferred(items[3:], [(1, 0)]))
