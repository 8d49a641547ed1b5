"""Scores that need no model, against figures worked out by hand."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
from support.benchmarks import reward_bench_2_item, reward_bench_items, sample_items

from hf_interdistill.reward_benchmarks import BENCHMARKS
from hf_interdistill.reward_benchmarks.baselines import baseline_results, baseline_rewards
from hf_interdistill.reward_benchmarks.items import Row


def baselines(name, items):
    return baseline_results(BENCHMARKS[name], items, baseline_rewards(items))


def test_reward_bench_by_length():
    items = reward_bench_items(
        ("alpacaeval-easy", 9, 3),
        ("alpacaeval-easy", 2, 3),
        ("alpacaeval-easy", 4, 4),  # of equal length: half
        ("mt-bench-easy", 5, 1),
        ("math-prm", 1, 7),
        ("hep-go", 6, 2),
    )
    found = baselines("reward_bench", items)
    assert list(found) == ["chance", "longest", "shortest"]  # the rows name the chosen answer: there is no order
    chat, reasoning = (0.5 * 100 + 1 * 28) / 128, 164 / (984 + 164)
    longest = found["longest"]
    assert longest.subsets["alpacaeval-easy"].score == 0.5 and longest.subsets["math-prm"].score == 0
    assert longest.sections == pytest.approx({"Chat": chat, "Reasoning": reasoning})
    assert longest.total == pytest.approx((chat + reasoning) / 2)
    assert found["shortest"].total == pytest.approx(1 - longest.total)  # with ties half, and only so
    assert set(found["chance"].scores().values()) == {0.5}


def test_the_prior_sets_weigh_a_half():
    items = reward_bench_items(("donotanswer", 9, 3))
    for part, (one, other) in (("shp", (1, 2)), ("summarize", (5, 5))):
        values = {"prompt": [{"role": "x", "content": "q"}], "chosen": "c" * one, "rejected": "r" * other}
        items.append(BENCHMARKS["reward_bench_with_prior_sets"].parse(Row("file, line 1", part, values)))
    found = baselines("reward_bench_with_prior_sets", items)
    assert found["longest"].sections == {"Safety": 1, "Prior Sets": (0 + 0.5) / 2}
    assert found["longest"].total == pytest.approx((1 + 0.5 * 0.25) / 1.5)


def test_length_is_that_of_characters():
    values = {"prompt": "p", "chosen": "ééé", "rejected": "aaaa", "subset": "donotanswer"}  # 6 bytes against 4
    items = [BENCHMARKS["reward_bench"].parse(Row("file, line 1", "filtered", values))]
    assert baselines("reward_bench", items)["longest"].total == 0


def test_reward_bench_2_is_the_mean_over_all_ways_to_break_ties():
    rows = [([5], [5, 5, 1]), ([2], [3, 2, 1]), ([1], [1, 1, 1]), ([7], [3, 7, 2])]
    items = [reward_bench_2_item("Math", right, wrong) for right, wrong in rows]
    found = baselines("reward_bench_2", items)

    def expected(sign):
        """Right in what share of the orders in which answers of equal length are shuffled."""
        shares = []
        for right, wrong in rows:
            keys = [sign * length for length in right + wrong]
            best = [max(range(4), key=lambda i: (keys[i], order[i])) for order in permutations(range(4))]
            shares.append(best.count(0) / len(best))
        return sum(shares) / len(shares)

    assert found["longest"].subsets["Math"].score == pytest.approx(expected(1))
    assert found["shortest"].subsets["Math"].score == pytest.approx(expected(-1))
    assert found["chance"].total == 0.25


def test_reward_bench_2_ties_are_scored_by_their_formula():
    items = [
        reward_bench_2_item("Ties", [8], [3, 2], "ref:0"),  # gap 5
        reward_bench_2_item("Ties", [9, 7], [3, 2], "tied:0"),  # gap 4, spread 2
    ]
    found = baselines("reward_bench_2", items)
    assert found["longest"].total == pytest.approx(0.3 + 0.3 + 0.2 + 0.2 + 0.01 * math.tanh(4 / 2 - 1))
    assert found["shortest"].total == pytest.approx(0.01 * math.tanh(min(2 - 8, 2 - 9) / 2 - 1))


def test_rm_bench_levels_with_ties_half():
    chosen, rejected = (3, 5, 8), (3, 4, 8)
    values = {
        "prompt": "p",
        "domain": "code",
        "chosen": ["c" * n for n in chosen],
        "rejected": ["r" * n for n in rejected],
    }
    item = BENCHMARKS["rm_bench"].parse(Row("file, line 1", "train", values))
    found = baselines("rm_bench", [item])["longest"]
    won = [[(one > other) + (one == other) / 2 for other in rejected] for one in chosen]
    easy, normal = (won[1][0] + won[2][0] + won[2][1]) / 3, (won[0][0] + won[1][1] + won[2][2]) / 3
    hard = (won[0][1] + won[0][2] + won[1][2]) / 3
    assert [easy, normal, hard] == [1, 2 / 3, 0]
    assert found.scores() == pytest.approx(
        {
            **{"code/easy": easy, "code/normal": normal, "code/hard": hard, "[code]": (easy + normal + hard) / 3},
            **{"[easy]": easy, "[normal]": normal, "[hard]": hard, "total": (easy + normal + hard) / 3},
        }
    )


def test_published_places():
    """By the labels of the sample rows, read off the files."""
    found = baselines("judge_bench", sample_items("judge_bench"))
    right_is_first = [item.facts["is_a_better"] for item in sample_items("judge_bench")]
    assert 0 < sum(right_is_first) < len(right_is_first)
    assert found["first"].total == pytest.approx(sum(right_is_first) / len(right_is_first))
    assert found["last"].total == pytest.approx(1 - found["first"].total)
    assert found["chance"].total == 0.5  # a tie is B in the authors' code, but not chance
    labels = [item.facts["better"] == 0 for item in sample_items("llmbar") if item.subset == "Natural"]
    assert baselines("llmbar", sample_items("llmbar"))["first"].subsets["Natural"].score == sum(labels) / len(labels)


def test_the_place_is_that_of_the_row_where_the_preferred_answer_comes_first():
    rows = [{"prompt": "p", "response_1": "a", "response_2": "bb", "winner": f"model_{name}"} for name in "aab"]
    benchmark = BENCHMARKS["ppe_human_preference"]
    items = [benchmark.parse(Row("file, line 1", "test", row)) for row in rows]
    found = baselines("ppe_human_preference", items)
    assert found["first"].total == pytest.approx(2 / 3) and found["last"].total == pytest.approx(1 / 3)
    assert found["longest"].total == pytest.approx(1 / 3)


def test_ppe_correctness_by_place_and_length():
    answers = {"response_1": "aaa", "response_2": "aa", "response_3": "aaa"}
    row = {"prompt": "p", "scores": [False, True, True], "sampled_conflict_pairs": [[0, 1], [2, 0]], **answers}
    item = BENCHMARKS["ppe_correctness"].parse(Row("file, line 1", "math", row))
    found = baselines("ppe_correctness", [item])
    assert found["longest"].subsets["math"].score == 0.25  # 3 > 2 is wrong, 3 = 3 half
    assert found["longest"].sections["best_of_k"] == 0.5 and found["shortest"].sections["best_of_k"] == 1
    assert found["first"].subsets["math"].score == 0 and found["last"].sections["best_of_k"] == 1


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_baselines(name):
    found = baselines(name, sample_items(name))
    has_order = name not in ("reward_bench", "reward_bench_with_prior_sets", "reward_bench_2", "rm_bench")
    assert list(found) == ["chance", "longest", "shortest", *["first", "last"] * has_order]
    assert len({tuple(result.scores()) for result in found.values()}) == 1
