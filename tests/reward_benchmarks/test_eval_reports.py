"""What `interdistill eval` says beside the scores: baselines, lengths, batches."""

from __future__ import annotations

import json

import pytest
from support.benchmarks import sample_path
from support.models import build_student
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardScorer
from hf_interdistill.cli import main
from hf_interdistill.commands.evaluations import read_evaluations
from hf_interdistill.reward_benchmarks.batch_check import BatchCheck, check_batches, sampled
from hf_interdistill.reward_benchmarks.items import Item
from hf_interdistill.utils.jsonl_jobs import JsonlJob


@pytest.fixture
def model(tmp_path) -> str:
    build_student().save_pretrained(tmp_path / "model")
    tokenizer_of("bytes").save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def scorer(tokenizer) -> RewardScorer:
    return RewardScorer(build_student(), tokenizer, batch_size=4)


def evaluate(model, name, folder, *options) -> list[str]:
    command = ["eval", "--model", model, "--benchmark", name, "--data", str(sample_path(name))]
    return [*command, "--output", str(folder), *options]


def read(folder) -> dict:
    (result,) = json.loads((folder / "results.json").read_text())
    return result


def wide(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def length_as_reward(monkeypatch) -> None:
    """A model that counts the characters of a text."""

    def counted(self, rows, **kwargs):
        return [float(len(text)) for text in self.tokenizer.batch_decode(rows)]

    monkeypatch.setattr(RewardScorer, "score_ids", counted)


@pytest.mark.parametrize("name", ["reward_bench", "reward_bench_2", "rm_bench", "judge_bench"])
def test_a_model_that_counts_characters_shows(name, model, tmp_path, monkeypatch, capsys):
    length_as_reward(monkeypatch)
    wide(monkeypatch)
    assert main(evaluate(model, name, tmp_path / "out")) == 0
    result = read(tmp_path / "out")
    longest = result["baselines"]["longest"]
    subsets = {each: subset["score"] for each, subset in result["subsets"].items()}
    for each, score in {**subsets, "total": result["total"]}.items():
        ties = longest[each]["score"] - score  # at most half of each equal length, which is wrong for a model
        assert result["ties"] or ties == pytest.approx(0)
        assert result["minus_best_baseline"][each]["value"] <= 1e-9
    assert result["longer_preferred"] == 1
    printed = capsys.readouterr().out
    (total,) = (line for line in printed.splitlines() if line.startswith("│ total") and line.count("│") > 6)
    assert ")!" in total
    assert "model: prefers the longer answer in 100.0 % of pairs" in printed


def test_all_figures_are_in_the_results(model, tmp_path, monkeypatch, capsys):
    wide(monkeypatch)
    command = evaluate(model, "reward_bench", tmp_path / "out", "--length_share", "0.5", "--batch_size", "3")
    assert main(command) == 0
    result, printed = read(tmp_path / "out"), capsys.readouterr().out
    names = [*result["subsets"], *(f"[{name}]" for name in result["sections"]), "total"]
    for part in ("intervals", "minus_best_baseline", *(("baselines", name) for name in result["baselines"])):
        found = result[part] if isinstance(part, str) else result[part[0]][part[1]]
        assert list(found) == names
    assert list(result["baselines"]) == ["chance", "longest", "shortest"]
    (pushed,) = read_evaluations(str(tmp_path / "out" / "results.json"), model, "user/rm")
    assert (pushed.total, pushed.rows, pushed.sections) == (result["total"], 8, result["sections"])
    interval = result["intervals"]["total"]
    assert interval["value"] == pytest.approx(result["total"])
    assert interval["low"] <= interval["value"] <= interval["high"]
    rows = [json.loads(line) for line in sample_path("reward_bench").read_text().splitlines()]
    lengths = [(len(row["chosen"]), len(row["rejected"])) for row in rows]
    alike = [abs(one - other) <= 0.5 * max(one, other) for one, other in lengths]
    assert result["length_share"] == 0.5 and 0 < sum(alike) < len(rows)
    assert result["length_matched"]["all"]["pairs"] == sum(alike)
    assert result["length_matched"]["all"]["verdict"] == "inconclusive"
    longest = sum((one > other) + (one == other) / 2 for one, other in lengths) / len(rows)
    subsets = [
        each["score"] * result["subsets"][name]["rows"]
        for name, each in result["baselines"]["longest"].items()
        if name in result["subsets"]
    ]
    assert sum(subsets) / len(rows) == pytest.approx(longest)
    assert "inconclusive" in printed
    tables = [line for line in printed.splitlines() if line[:1] in "│┃┏└├┡"]
    assert tables and max(map(len, tables)) <= 100
    for note in ("in batches differ by up to", "The rows have no order of answers", "not above the best baseline"):
        assert note in printed and note in (tmp_path / "out" / "results.md").read_text()


def test_rewards_alone_and_in_batches_are_compared_once(model, tmp_path, monkeypatch):
    calls: list[int] = []
    score_ids = RewardScorer.score_ids
    monkeypatch.setattr(
        RewardScorer, "score_ids", lambda self, rows, **kw: calls.append(len(rows)) or score_ids(self, rows, **kw)
    )
    command = evaluate(model, "reward_bench", tmp_path / "out", "--batch_size", "4")
    assert main(command) == 0
    assert calls == [1] * 16 + [16] + [16]  # each alone, all together; then the benchmark
    check = read(tmp_path / "out")["batch_check"]
    assert check["texts"] == 16 and check["choices"] == 8 and check["changed"] == 0 and check["batch_size"] == 4
    assert 0 <= check["relative"] <= check["tolerance"] == 1e-4 and check["verdict"] == "pass"
    assert "model: batch invariance: pass; rewards of 16 texts" in (tmp_path / "out" / "results.md").read_text()
    assert main(command) == 0 and len(calls) == 18  # both are on the disk
    assert main(evaluate(model, "reward_bench", tmp_path / "out", "--batch_size", "2")) == 0 and len(calls) == 35
    assert main(evaluate(model, "reward_bench", tmp_path / "out", "--batch_size", "1")) == 0 and len(calls) == 35
    assert read(tmp_path / "out")["batch_check"] is None
    assert "model: batches were not checked (" in (tmp_path / "out" / "results.md").read_text()


def uneven(monkeypatch, amount: float) -> None:
    """Rewards that depend on how many texts are read together, by turns more and less."""
    score_ids = RewardScorer.score_ids

    def changed(self, rows, **kwargs):
        rewards = score_ids(self, rows, **kwargs)
        return rewards if len(rows) == 1 else [value + amount * (-1) ** n for n, value in enumerate(rewards)]

    monkeypatch.setattr(RewardScorer, "score_ids", changed)


def test_rewards_that_depend_on_the_batch_are_refused_before_the_work(model, tmp_path, monkeypatch, capsys):
    uneven(monkeypatch, -10.0)  # the model is right on all of these pairs
    assert main(evaluate(model, "reward_bench", tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "alone and in batches of 16 differ by up to 10" in error and "0.0001 is allowed" in error
    assert "`batch_size` 1" in error and "`batch_tolerance`" in error
    for name in ("scores.jsonl", "batch_checks.jsonl"):  # nothing is kept of what is refused
        assert not (tmp_path / "out" / name).exists()
    assert main(evaluate(model, "reward_bench", tmp_path / "out", "--batch_tolerance", "1e9")) == 0
    check = read(tmp_path / "out")["batch_check"]
    assert check["largest"] == pytest.approx(10, rel=1e-5) and check["tolerance"] == 1e9
    assert check["changed"] == check["choices"] == 8 and check["verdict"] == "flag"


def test_without_choices_batch_invariance_is_inconclusive():
    check = BatchCheck(texts=2, largest=0.0, relative=0.0, choices=0, changed=0, tolerance=1e-4, batch_size=4)
    assert check.verdict == check.to_dict()["verdict"] == "inconclusive"


def test_the_difference_is_a_share_of_the_largest_reward(scorer, monkeypatch):
    items = [
        Item(f"line {n}", "s", [{"role": "user", "content": "q"}], ("a" * n, "b"), pairs=((0, 1),)) for n in (1, 9)
    ]
    alone = [scorer.score_ids([scorer.encode(item.prompt, text, {})])[0] for item in items for text in item.candidates]
    uneven(monkeypatch, 0.5)
    check = check_batches(scorer, items, allowed=1e9)
    assert check.largest == pytest.approx(0.5, rel=1e-4)
    assert check.relative == pytest.approx(0.5 / max(map(abs, alone)), rel=1e-4)
    with pytest.raises(ValueError, match=r"differ by up to 0\.5"):
        check_batches(scorer, items, job=JsonlJob(None), model_key="m")


def test_samples_have_the_longest_and_the_shortest_answer():
    items = [Item(str(n), "s", [], ("x" * 50, "y" * (40 + n % 7))) for n in range(100)]
    items[33] = Item("long", "s", [], ("x" * 500, "y" * 50))
    items[34] = Item("short", "s", [], ("x", "y" * 50))
    found = [item.location for item in sampled(items, 20)]
    assert len(found) == 10 and {"long", "short", "0"} <= set(found)
    assert [item.location for item in sampled(items[:1], 20)] == ["0"]
    wide_items = [Item(str(n), "s", [], ("x" * (n + 1),) * 32) for n in range(5)]
    assert [item.location for item in sampled(wide_items, 32)] == ["0", "4"]


def test_many_models_stand_in_tables_of_two(model, tmp_path, monkeypatch, capsys):
    import shutil

    wide(monkeypatch)
    others = [shutil.copytree(model, tmp_path / name) for name in ("second-model", "third-model")]
    command = evaluate(model, "reward_bench", tmp_path / "out")
    command[3:3] = [str(other) for other in others]
    assert main(command) == 0
    printed = capsys.readouterr().out
    heads = [line for line in printed.splitlines() if line.startswith("┃") and "shortest" in line]
    assert ["model" in head for head in heads] == [True, True] and ["third-model" in head for head in heads] == [0, 1]
    assert "second-model minus model, total: inconclusive; 0.0 points" in printed
    (wide_table,) = (line for line in (tmp_path / "out" / "results.md").read_text().splitlines() if "shortest" in line)
    assert wide_table.endswith("| model | second-model | third-model |")
