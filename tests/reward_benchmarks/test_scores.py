"""Readers on sample files in each published format, aggregators against figures worked out by hand."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import datasets
import pytest

from hf_interdistill.reward_benchmarks import BENCHMARKS, find_benchmark
from hf_interdistill.reward_benchmarks.items import Row
from hf_interdistill.reward_benchmarks.loading import load_items

SAMPLES = Path(__file__).parent / "samples"
FILES = {
    "reward_bench": "reward_bench/filtered.jsonl",
    "reward_bench_with_prior_sets": "reward_bench",
    "reward_bench_2": "reward_bench_2.jsonl",
    "rm_bench": "rm_bench",
    "llmbar": "llmbar",
    "judge_bench": "judge_bench.jsonl",
    "judge_bench_claude": "judge_bench.jsonl",
    "ppe_human_preference": "ppe_human_preference.jsonl",
    "ppe_correctness": "ppe_correctness",
}


def items_of(name):
    return load_items(BENCHMARKS[name], str(SAMPLES / FILES[name]))


def score(name, rows_and_rewards):
    """The result for rows (with the line they would come from) and rewards."""
    benchmark = BENCHMARKS[name]
    items = [benchmark.parse(Row("file, line 1", part, values)) for part, values, _ in rows_and_rewards]
    return benchmark.aggregate(items, [rewards for *_, rewards in rows_and_rewards])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_perfect_and_a_blind_model(name):
    """On every sample: right answers rewarded with 1, wrong ones with 0; then all alike."""
    items = items_of(name)
    assert all(item.prompt[-1]["role"] == "user" and len(set(item.candidates)) > 1 for item in items)
    right = {
        "reward_bench_2": lambda item: {*range(item.facts.get("correct", 1))},
        "rm_bench": lambda item: {0, 1, 2},
        "llmbar": lambda item: {item.facts["better"]},
        "judge_bench": lambda item: {0 if item.facts["is_a_better"] else 1},
        "ppe_correctness": lambda item: {i for i, is_right in enumerate(item.facts["is_right"]) if is_right},
    }.get(name.replace("_claude", ""), lambda item: {0})
    perfect = [[float(i in right(item)) for i in range(len(item.candidates))] for item in items]
    result = BENCHMARKS[name].aggregate(items, perfect)
    assert result.ties == 0 and result.total == pytest.approx(1, abs=0.01) and result.rows >= len(items)
    assert all(subset.score == pytest.approx(1, abs=0.011) for subset in result.subsets.values())
    blind = BENCHMARKS[name].aggregate(items, [[0.5] * len(item.candidates) for item in items])
    assert blind.ties > 0
    chance = {"llmbar": 0.5, "judge_bench": 2 / 5, "judge_bench_claude": 2 / 5, "reward_bench_2": 5 * 0.25 / 6}
    assert blind.total == pytest.approx(chance.get(name, 0.0))  # ties as the authors count them


def pair(subset, prompt="p"):
    return {"prompt": prompt, "chosen": "a", "rejected": "b", "subset": subset}


def test_reward_bench_weighs_subsets_sections_and_prior_sets():
    rows = [
        ("filtered", pair("alpacaeval-easy"), (2, 1)),
        ("filtered", pair("alpacaeval-easy"), (1, 2)),
        ("filtered", pair("mt-bench-easy"), (2, 1)),
        ("filtered", pair("math-prm"), (2, 1)),
        ("filtered", pair("hep-cpp"), (1, 1)),  # a tie is wrong
    ]
    result = score("reward_bench", rows)
    chat = (0.5 * 100 + 1 * 28) / 128
    reasoning = 984 / (984 + 164)
    assert result.sections == pytest.approx({"Chat": chat, "Reasoning": reasoning})
    assert result.total == pytest.approx((chat + reasoning) / 2)
    assert result.subsets["alpacaeval-easy"].rows == 2 and result.ties == 1
    assert "donotanswer" in result.missing and "alpacaeval-easy" not in result.missing
    shp = ("shp", {"prompt": [{"role": "x", "content": "q"}], "chosen": "a", "rejected": "b"}, (2, 1))
    helpful = ("data/anthropic_helpful", {**shp[1], "subset": "its own"}, (1, 2))
    with_prior = score("reward_bench_with_prior_sets", [*rows, shp, shp, helpful])
    assert with_prior.sections["Prior Sets"] == 0.5  # subsets alike, not rows
    assert with_prior.total == pytest.approx((chat + reasoning + 0.5 * 0.5) / 2.5)
    assert "summarize" in with_prior.missing and "summarize" not in result.missing


def test_reward_bench_covers_all_published_subsets():
    from hf_interdistill.reward_benchmarks.reward_bench import SECTIONS

    counts = {name: count for subsets in SECTIONS.values() for name, count in subsets.items()}
    assert len(counts) == 23 and sum(counts.values()) == 2985 - 447 + 984  # rows published, math counted up


def many(subset, right, wrong, name="0"):
    return {
        "id": name,
        "prompt": "p",
        "chosen": ["a"] * right,
        "rejected": ["b"] * wrong,
        "num_correct": right,
        "subset": subset,
    }


def test_reward_bench_2_best_of_four():
    rows = [
        ("test", many("Math", 1, 3), (4, 1, 2, 3)),
        ("test", many("Math", 1, 3), (4, 4, 2, 4)),  # three share the first rank
        ("test", many("Math", 1, 3), (1, 4, 2, 3)),
        ("test", many("Focus", 1, 3), (5, 1, 1, 1)),
    ]
    result = score("reward_bench_2", rows)
    assert result.subsets["Math"].score == pytest.approx((1 + 1 / 3) / 3) and result.subsets["Math"].ties == 1
    assert result.total == pytest.approx((4 / 9 + 1) / 2)
    assert result.missing == ("Factuality", "Precise IF", "Safety", "Ties")


def test_reward_bench_2_ties_formula():
    rows = [
        ("test", many("Ties", 1, 2, "ref:0"), (5, 2, 1)),  # gap 3
        ("test", many("Ties", 3, 2, "tied:0"), (6, 5, 4, 1, 0)),  # gap 3, spread 2
        ("test", many("Ties", 1, 1, "ref:1"), (1, 2)),  # gap -1
        ("test", many("Ties", 2, 1, "tied:1"), (4, 3, 1)),  # gap 2, spread 1
    ]
    margin = (math.tanh(3 / 2 - 1) + math.tanh(-1 / 1 - 1)) / 2
    expected = 0.3 * 1 + 0.3 * 0.5 + 0.2 * 1 + 0.2 * 0.5 + 0.01 * margin
    assert score("reward_bench_2", rows).subsets["Ties"].score == pytest.approx(expected)
    with pytest.raises(ValueError, match="no prompt has both rows"):
        score("reward_bench_2", [rows[0], rows[3]])


def test_rm_bench_levels_and_domains():
    def row(domain):
        return {"prompt": "p", "chosen": ["a"] * 3, "rejected": ["b"] * 3, "domain": domain}

    rows = [
        # chosen 1, 2, 3 against 2, 2, 2: right is the third row; ties in the second
        ("train", row("chat"), (1, 2, 3, 2, 2, 2)),
        ("train", row("safety-refuse"), (9, 9, 9, 0, 0, 0)),
        ("train", row("safety-response"), (0, 0, 0, 9, 9, 9)),
        ("code_filtered", {key: value for key, value in row("").items() if key != "domain"}, (3, 1.9, 1, 2.5, 1.8, 0)),
    ]
    result = score("rm_bench", rows)
    chat = {"easy": 2 / 3, "normal": 1 / 3, "hard": 0}
    assert {level: result.subsets[f"chat/{level}"].score for level in chat} == pytest.approx(chat)
    code = {"easy": 0, "normal": 1, "hard": 1}  # a row of chosen 3, 1.9, 1 against 2.5, 1.8, 0
    assert {level: result.subsets[f"code/{level}"].score for level in code} == pytest.approx(code)
    assert result.sections["safety"] == 0.5 and result.sections["chat"] == pytest.approx(1 / 3)
    assert result.sections["hard"] == pytest.approx((0 + 1 + 0.5) / 3)
    assert result.total == pytest.approx((1 / 3 + 2 / 3 + 0.5) / 3)
    assert result.ties == 3 and result.missing == ("math",)


def test_llmbar_counts_a_tie_half():
    row = {"input": "p", "output_1": "a", "output_2": "b", "label": 2}
    rows = [
        ("Natural/dataset", row, (1, 2)),
        ("Natural/dataset", row, (2, 2)),
        ("Adversarial/Neighbor/dataset", row, (2, 1)),
        ("Adversarial_Manual", {**row, "label": 1}, (2, 1)),
    ]
    result = score("llmbar", rows)
    assert {name: subset.score for name, subset in result.subsets.items()} == {
        "Natural": 0.75,
        "Neighbor": 0,
        "Manual": 1,
    }
    assert result.sections == {"Adversarial": 0.5} and result.total == pytest.approx(1.75 / 3)
    assert result.subsets["Natural"].ties == 1 and result.missing == ("GPTInst", "GPTOut")


def test_judge_bench_decides_ties_for_b_and_keeps_response_models_apart():
    def row(source, label, model="m"):
        answers = {"question": "q", "response_A": "a", "response_B": "b"}
        return {**answers, "source": source, "label": label, "response_model": model}

    rows = [
        ("gpt", row("mmlu-pro-law", "A>B"), (2, 1)),
        ("gpt", row("mmlu-pro-math", "A>B"), (1, 1)),
        ("gpt", row("mmlu-pro-math", "B>A"), (1, 1)),
        ("gpt", row("livebench-math", "B>A"), (2, 1)),
    ]
    result = score("judge_bench", rows)
    assert result.subsets["knowledge"].score == pytest.approx(2 / 3) and result.subsets["knowledge"].ties == 2
    assert result.subsets["math"].score == 0 and result.total == 0.5  # over pairs, not categories
    with pytest.raises(ValueError, match="each response model separately, but the data hold m, other"):
        score("judge_bench", [*rows, ("gpt", row("livebench-math", "B>A", "other"), (1, 2))])


def test_ppe_human_preference_leaves_voters_ties_out():
    items = items_of("ppe_human_preference")
    assert [item.candidates[0] for item in items] == ["In water.", "2 = 2 * 1.", items[2].candidates[0]]
    result = BENCHMARKS["ppe_human_preference"].aggregate(items, [(1, 0), (0, 1), (1, 1)])
    assert result.total == pytest.approx(1 / 3) and result.ties == 1
    assert result.sections == {"hard": 0, "easy": 1, "instruction following": 0, "math": 0, "code": 0}


def test_ppe_correctness_pairs_and_best_of_k():
    def row(scores, pairs):
        answers = {f"response_{number}": "a" for number in range(1, len(scores) + 1)}
        return {"prompt": "p", "scores": scores, "sampled_conflict_pairs": pairs, **answers}

    rows = [
        ("math", row([True, False, False], [[0, 1], [2, 0]]), (2, 1, 3)),  # right, wrong; picks a wrong one
        ("PPE-MATH-Best-of-K", row([True, False], [[1, 0]]), (1, 1)),  # a tie: wrong, and half picked
        ("mmlu_pro", row([False, True, True], [[0, 1], [0, 2]]), (0, 1, 2)),
    ]
    result = score("ppe_correctness", rows)
    assert result.subsets["math"].score == pytest.approx(1 / 3) and result.subsets["math"].ties == 1
    assert result.subsets["mmlu_pro"].score == 1 and result.total == pytest.approx(2 / 3)
    assert result.sections == pytest.approx({"mmlu_pro/best_of_k": 1, "math/best_of_k": 0.25, "best_of_k": 0.625})
    assert result.missing == ("gpqa", "mbpp_plus", "ifeval")


def test_prior_sets_keep_their_turns():
    items = [item for item in items_of("reward_bench_with_prior_sets") if item.subset == "shp"]
    assert [message["role"] for message in items[0].prompt] == ["user", "assistant", "user"]
    assert items[0].candidates == ("Then buy fresh yeast.", "Bake it longer.")


def test_parquet_json_and_jsonl_hold_the_same(tmp_path):
    source = SAMPLES / FILES["reward_bench"]
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "filtered.parquet")
    (tmp_path / "filtered.json").write_text(json.dumps(rows))
    shutil.copy(source, tmp_path / "lines.json")
    expected = [(item.subset, item.candidates) for item in items_of("reward_bench")]
    for name in ("filtered.parquet", "filtered.json", "lines.json"):
        items = load_items(BENCHMARKS["reward_bench"], str(tmp_path / name))
        assert [(item.subset, item.candidates) for item in items] == expected
        assert items[2].location == f"{tmp_path / name}, {'line' if name.startswith('lines') else 'row'} 3"


def test_from_the_hub_every_published_part_is_read(monkeypatch):
    """Not run against the Hub here: the call and what becomes of its rows."""
    calls = []

    def load_dataset(path, data_files=None, split=None):
        calls.append((path, data_files, split))
        if path == "json":
            return [{"input": "p", "output_1": "a", "output_2": "b", "label": 1}]
        lines = (SAMPLES / "ppe_correctness" / "math.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    items = load_items(BENCHMARKS["ppe_correctness"])
    assert [item.subset for item in items] == [
        d for d in ("mmlu_pro", "math", "gpqa", "mbpp_plus", "ifeval") for _ in "ab"
    ]
    assert items[1].location == "lmarena-ai/PPE-MMLU-Pro-Best-of-K, split train, row 2"
    assert calls[0] == ("lmarena-ai/PPE-MMLU-Pro-Best-of-K", None, "train")
    subsets = [item.subset for item in load_items(BENCHMARKS["llmbar"])]
    assert subsets == ["Natural", "Neighbor", "GPTInst", "GPTOut", "Manual"]
    assert calls[-1][1].endswith("LLMBar/Adversarial/Manual/dataset.json")


BAD_ROWS = [
    ("reward_bench", {"prompt": "p"}, "line 2 has no `subset`; its columns are"),
    ("reward_bench", {**pair("chess")}, "line 2: RewardBench has no subset `chess`"),
    ("reward_bench", {**pair("donotanswer"), "chosen": 3}, "line 2: `chosen` is 3, but must be a str"),
    ("reward_bench_2", many("Math", 1, 3) | {"num_correct": 2}, "line 2: `num_correct` is 2, but `chosen` holds 1"),
    ("reward_bench_2", many("Ties", 2, 2, "7"), "line 2: a row of Ties has the id `ref:N` or `tied:N`, not '7'"),
    ("reward_bench_2", many("Ties", 2, 2, "ref:7"), "`ref:7` has 2 right answers"),
    ("reward_bench_2", many("Math", 0, 2), "line 2: `chosen` is .*not empty"),
    ("rm_bench", {"prompt": "p", "chosen": ["a"], "rejected": ["b"], "domain": "chat"}, "line 2 has 1 chosen and 1"),
    ("rm_bench", {"prompt": "p", "domain": "chess"}, "line 2: neither `domain` .'chess'. nor the file's name"),
    ("llmbar", {"input": "p"}, "line 2: `.*data` names no subset of LLMBar"),
    ("judge_bench", {"source": "chess", "label": "A>B"}, "line 2: the source `chess`"),
    ("judge_bench", {"source": "mmlu-pro", "label": "A"}, "line 2: `label` is 'A'"),
    ("ppe_human_preference", {"winner": "nobody"}, "line 2: `winner` is 'nobody'"),
    ("ppe_correctness", {"prompt": "p"}, "names no domain of PPE"),
]


@pytest.mark.parametrize(("name", "row", "message"), BAD_ROWS)
def test_bad_rows_are_named_by_file_and_line(name, row, message, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=f"data.jsonl, {message}" if message.startswith("line") else message):
        load_items(BENCHMARKS[name], str(path))


def test_bad_conflict_pairs_and_files_are_explained(tmp_path):
    row = json.loads((SAMPLES / "ppe_correctness" / "math.jsonl").read_text().splitlines()[0])
    for pairs, message in (([[0, 9]], r"\[0, 9\] must be two indices of 4"), ([[0, 2]], "both right or both wrong")):
        (tmp_path / "math.jsonl").write_text(json.dumps({**row, "sampled_conflict_pairs": pairs}))
        with pytest.raises(ValueError, match=message):
            load_items(BENCHMARKS["ppe_correctness"], str(tmp_path))
    (tmp_path / "math.jsonl").write_text('{"a": 1}\n{"a":')
    with pytest.raises(ValueError, match="line 1 has no `scores`"):
        load_items(BENCHMARKS["ppe_correctness"], str(tmp_path))
    (tmp_path / "math.jsonl").write_text('\n{"a":')
    with pytest.raises(ValueError, match=r"Line 2 of .*math.jsonl is not a JSON object"):
        load_items(BENCHMARKS["ppe_correctness"], str(tmp_path))
    with pytest.raises(FileNotFoundError, match="is not there"):
        load_items(BENCHMARKS["llmbar"], str(tmp_path / "nothing"))
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(ValueError, match=r"cannot read `.csv` files"):
        load_items(BENCHMARKS["llmbar"], str(tmp_path / "x.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no data file"):
        load_items(BENCHMARKS["llmbar"], str(tmp_path / "empty"))
    (tmp_path / "ties.jsonl").write_text('{"winner": "tie"}\n')
    with pytest.raises(ValueError, match="holds no row that ppe_human_preference counts"):
        load_items(BENCHMARKS["ppe_human_preference"], str(tmp_path / "ties.jsonl"))


def test_unknown_benchmarks_name_the_nearest():
    with pytest.raises(ValueError, match=r"no benchmark `RewardBench`. Did you mean `reward_bench`"):
        find_benchmark("RewardBench")
    with pytest.raises(ValueError, match="There are reward_bench, "):
        find_benchmark("zzz")
