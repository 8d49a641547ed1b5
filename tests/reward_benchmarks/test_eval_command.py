"""`interdistill eval` for real on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.datasets import ROOT
from support.faults import at_call, killed
from support.models import build_student
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardScorer, run_benchmark
from hf_interdistill.cli import main
from hf_interdistill.reward_benchmarks.running import fingerprint_model
from hf_interdistill.utils.jsonl_jobs import JsonlJob

SAMPLES = Path(__file__).parent / "samples"


def save_model(folder: Path, seed: int = 0) -> str:
    build_student(seed=seed).save_pretrained(folder)
    tokenizer_of("bytes").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def model(tmp_path) -> str:
    return save_model(tmp_path / "model")


@pytest.fixture
def scorer(tokenizer) -> RewardScorer:
    return RewardScorer(build_student(), tokenizer, batch_size=1)


def test_one_model_on_reward_bench(model, tmp_path, capsys):
    source = SAMPLES / "reward_bench" / "filtered.jsonl"
    output = tmp_path / "out"
    command = ["eval", "--model", model, "--benchmark", "reward_bench", "--data", str(source), "--output", str(output)]
    assert main(command) == 0
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    scorer = RewardScorer.from_pretrained(model)
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    chosen, rejected = (scorer(prompts, [row[side] for row in rows]) for side in ("chosen", "rejected"))
    is_right = [one > other for one, other in zip(chosen, rejected, strict=True)]
    (result,) = json.loads((output / "results.json").read_text())
    assert result["benchmark"] == "reward_bench" and result["model"] == model and result["rows"] == len(rows) == 8
    for name, subset in result["subsets"].items():
        own = [right for right, row in zip(is_right, rows, strict=True) if row["subset"] == name]
        assert subset == {"score": sum(own) / len(own), "rows": len(own), "ties": 0}
    text = (output / "results.md").read_text()
    assert f" {result['total']:.4f} (" in text and "Not in the data: alpacaeval-length" in text
    assert "| alpacaeval-easy |" in text and "total" in capsys.readouterr().out
    kept = [json.loads(line) for line in (output / "scores.jsonl").read_text().splitlines()]
    assert [entry["rewards"] for entry in kept] == [
        pytest.approx(pair, abs=1e-5) for pair in zip(chosen, rejected, strict=True)
    ]
    formats = (ROOT / "docs" / "reference" / "formats.md").read_text()
    assert all(f"`{path.name}`" in formats for path in output.iterdir())


def test_models_and_benchmarks_side_by_side(model, tmp_path):
    other = save_model(tmp_path / "other", seed=1)
    names = ["reward_bench_2", "rm_bench", "llmbar", "judge_bench", "ppe_human_preference", "ppe_correctness"]
    data = [str(next(path for path in SAMPLES.iterdir() if path.stem == name)) for name in names]
    command = ["eval", "--model", model, other, "--benchmark", *names, "--data", *data]
    assert main([*command, "--output", str(tmp_path / "out"), "--batch_size", "4"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(result["benchmark"], result["model"]) for result in results] == [
        (n, m) for n in names for m in (model, other)
    ]
    by_model = {m: [result["total"] for result in results if result["model"] == m] for m in (model, other)}
    assert by_model[model] != by_model[other]
    text = (tmp_path / "out" / "results.md").read_text()
    assert text.count("| longest | shortest | model | other |") == 2  # the others have columns of places
    assert text.count("| first | last | model | other |") == 4 and "| [easy] |" in text
    for result in results:
        (other_model,) = {model, other} - {result["model"]}
        theirs = next(
            each for each in results if each["model"] == other_model and each["benchmark"] == result["benchmark"]
        )
        found = result["differences"][other_model]["total"]
        assert found["value"] == pytest.approx(result["total"] - theirs["total"])
        assert found["verdict"] == "inconclusive"  # a handful of rows


def count_scored(monkeypatch) -> list[int]:
    counts: list[int] = []
    score_ids = RewardScorer.score_ids

    def counted(self, rows, **kwargs):
        counts.append(len(rows))
        return score_ids(self, rows, **kwargs)

    monkeypatch.setattr(RewardScorer, "score_ids", counted)
    return counts


def test_a_killed_run_resumes(model, tmp_path, monkeypatch):
    command = ["eval", "--model", model, "--benchmark", "reward_bench", "--batch_size", "1"]
    command += ["--data", str(SAMPLES / "reward_bench" / "filtered.jsonl"), "--output", str(tmp_path / "out")]
    killed(command, lambda: at_call(RewardScorer, "score_ids", 2))
    scores = tmp_path / "out" / "scores.jsonl"
    assert len(scores.read_text().splitlines()) == 4 and not (tmp_path / "out" / "results.json").exists()
    scores.write_text(scores.read_text()[:-9])  # and half a line
    counts = count_scored(monkeypatch)
    assert main(command) == 0
    assert sum(counts) == 2 * 5  # three of eight pairs were on the disk
    first = (tmp_path / "out" / "results.json").read_text()
    assert main(command) == 0
    assert sum(counts) == 2 * 5 and (tmp_path / "out" / "results.json").read_text() == first
    assert len(scores.read_text().splitlines()) == 8
    assert main([*command, "--dtype", "bfloat16"]) == 0 and sum(counts) == 2 * 5 + 16  # other rewards, other entries
    save_model(tmp_path / "model", seed=3)
    assert main(command) == 0 and sum(counts) == 2 * 5 + 32  # trained again


def test_long_texts_are_refused_or_cut_and_counted(scorer, tmp_path):
    data = str(SAMPLES / "judge_bench.jsonl")
    whole = run_benchmark(scorer, "judge_bench", data)
    assert whole.cut_texts == 0
    short = RewardScorer(scorer.model, scorer.tokenizer, max_length=20)
    with pytest.raises(ValueError, match=r"judge_bench.jsonl, line 1: a text has \d+ tokens, more than max_length=20"):
        run_benchmark(short, "judge_bench", data)
    job = JsonlJob(tmp_path / "scores.jsonl")
    cut = run_benchmark(short, "judge_bench", data, job=job, model_key="m", is_truncating=True)
    lengths = []
    for line in Path(data).read_text().splitlines():
        row = json.loads(line)
        for answer in (row["response_A"], row["response_B"]):
            messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": answer}]
            lengths.append(scorer.formatter.encode(messages, []))
    assert cut.cut_texts == sum(len(ids) > 20 for ids in lengths) > 0
    expected = scorer.score_ids([ids[-20:] for ids in lengths[:2]])
    assert json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[0])["rewards"] == pytest.approx(
        expected, abs=1e-5
    )
    with pytest.raises(ValueError, match="no `max_length` to cut"):
        run_benchmark(scorer, "judge_bench", data, is_truncating=True)


def test_broken_models_are_not_scored_as_wrong(scorer):
    with torch.no_grad():
        scorer.model.score.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"line 1: the rewards are \[nan, nan\]"):
        run_benchmark(scorer, "judge_bench", str(SAMPLES / "judge_bench.jsonl"))


def test_models_without_a_template_are_refused_with_the_row(scorer):
    scorer.tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"line 1: .*no chat template"):
        run_benchmark(scorer, "judge_bench", str(SAMPLES / "judge_bench.jsonl"))


def test_keys_of_models(model, tmp_path, capsys):
    key = fingerprint_model(model, dtype="float32")
    assert key == fingerprint_model(model, dtype="float32") and key.startswith(model)
    assert key != fingerprint_model(model, dtype="bfloat16")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages }}")
    assert key != fingerprint_model(model, dtype="float32")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scores.jsonl").write_text("{]\n")
    command = ["eval", "--model", model, "--benchmark", "judge_bench", "--data", str(SAMPLES / "judge_bench.jsonl")]
    assert main([*command, "--output", str(tmp_path / "out")]) == 2
    assert "line 1 is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--benchmark", "reward_bnch"], "Did you mean `reward_bench`"),
        (["--benchmark", "llmbar", "llmbar"], "names one twice"),
        (["--benchmark", "llmbar", "rm_bench", "--data", "x"], "2 benchmarks and 1 `data`"),
        (["--benchmark", "llmbar", "--truncate", "true"], "`truncate` needs a `max_length`"),
        (["--benchmark", "llmbar", "--benchmarks", "x"], "Did you mean `benchmark`"),
        (["--benchmark", "llmbar", "--data", "nowhere.json"], "nowhere.json is not there"),
        (["--benchmark", "llmbar", "--length_share", "1.5"], "`length_share` is 1.5, but must be a share from 0 to 1"),
        (["--benchmark", "llmbar", "--length_share", "nan"], "`length_share` is nan"),
        (["--benchmark", "llmbar", "--resamples", "0"], "`resamples` is 0, but must be a whole number of at least 1"),
        (
            ["--benchmark", "llmbar", "--batch_tolerance", "-1"],
            "`batch_tolerance` is -1.0, but must be a finite share",
        ),
        (["--benchmark", "llmbar", "--batch_tolerance", "inf"], "`batch_tolerance` is inf"),
    ],
)
def test_bad_commands(model, tmp_path, capsys, extra, message):
    assert main(["eval", "--model", model, "--output", str(tmp_path / "out"), *extra]) == 2
    assert message in capsys.readouterr().err
