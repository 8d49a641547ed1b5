"""A command never continues results of another model, other rows or columns, and loses no finished ones."""

from __future__ import annotations

import json

import pytest
from support.models import build_student
from support.pipeline import PAIRS, Pipeline
from support.tokenizers import CHAT_TEMPLATE, tokenizer_of

from hf_interdistill import RewardScorer
from hf_interdistill.cli import main

ROWS = [{"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"]]} for row in PAIRS[:3]]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}]


@pytest.fixture
def pipeline(tmp_path) -> Pipeline:
    found = Pipeline(tmp_path / "pipeline")
    found.add_language_model(2)
    return found


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def command(name: str, pipeline: Pipeline, output: str, model: str | None = None) -> list[str]:
    out, student = ["--output", str(pipeline.path(output))], str(model or pipeline.path("student"))
    if name == "score":
        pairs = pipeline.write_rows("pairs.jsonl", PAIRS[:3])
        return ["score", "--model", student, "--input", pairs, *out]
    if name == "best-of-n":
        rows = pipeline.write_rows("candidates.jsonl", ROWS)
        return ["best-of-n", "--reward_model", student, "--prompts", rows, *out]
    if name == "sampled":
        words = ["--model", str(model or pipeline.path("lm")), "--n", "2", "--generation", '{"max_new_tokens": 3}']
        own = ["--reward_model", str(pipeline.path("student")), "--prompts", str(pipeline.path("prompts.jsonl"))]
        return ["best-of-n", *words, *own, *out]
    return pipeline.rain(output, **({} if model is None else {"model": model}))


def retrain(name: str, pipeline: Pipeline) -> None:
    """Another model of the same kind in the same folder."""
    if name in ("rain", "sampled"):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(pipeline.path("lm"))
        model.lm_head.weight.data.mul_(-1)
        model.save_pretrained(pipeline.path("lm"))
    else:
        build_student(seed=5).save_pretrained(pipeline.path("student"))


@pytest.mark.parametrize("name", ["score", "best-of-n", "sampled", "rain"])
def test_results_of_a_model_before_its_retraining_are_not_given_for_new_ones(name, pipeline, capsys):
    output = pipeline.path("out.jsonl")
    assert main(command(name, pipeline, "out.jsonl")) == 0
    before = output.read_bytes()
    assert main(command(name, pipeline, "out.jsonl")) == 0 and output.read_bytes() == before
    retrain(name, pipeline)
    assert main(command(name, pipeline, "out.jsonl")) == 2
    option = "reward_model" if name == "best-of-n" else "model"
    assert f"other settings (files of `{option}` differ)" in capsys.readouterr().err
    assert output.read_bytes() == before
    if name != "score":
        assert main([*command(name, pipeline, "out.jsonl"), "--overwrite", "true"]) == 0
    assert main(command(name, pipeline, "fresh.jsonl")) == 0
    fresh = pipeline.path("fresh.jsonl")
    assert fresh.read_bytes() != before
    assert name in ("score", "rain") or fresh.read_bytes() == output.read_bytes()


def test_outputs_without_a_digest_are_kept_and_not_continued(pipeline, capsys):
    assert main(command("score", pipeline, "out.jsonl")) == 0
    before = pipeline.path("out.jsonl").read_bytes()
    settings = pipeline.path("out.jsonl.settings.json")
    values = json.loads(settings.read_text())
    settings.write_text(json.dumps({key: values[key] for key in values if "files of" not in key}))
    assert main(command("score", pipeline, "out.jsonl")) == 2
    assert "(files of `model` differ). Delete it, or write to another output." in capsys.readouterr().err
    assert pipeline.path("out.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["best-of-n", "sampled", "rain"])
def test_overwriting_with_a_mistyped_model_removes_nothing(name, pipeline, capsys):
    assert main(command(name, pipeline, "out.jsonl")) == 0
    before = {path.name: path.read_bytes() for path in pipeline.folder.glob("out.jsonl*")}
    assert len(before) == 2
    words = command(name, pipeline, "out.jsonl", str(pipeline.path("studnt")))
    assert main([*words, "--overwrite", "true"]) == 2
    assert "is not there" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in pipeline.folder.glob("out.jsonl*")} == before


@pytest.mark.parametrize("name", ["best-of-n", "rain"])
def test_a_file_that_no_job_wrote_is_not_overwritten(name, pipeline, capsys):
    pipeline.path("notes.txt").write_text("my notes\n")
    assert main([*command(name, pipeline, "notes.txt"), "--overwrite", "true"]) == 2
    assert "its settings (notes.txt.settings.json) are missing" in capsys.readouterr().err
    assert pipeline.path("notes.txt").read_text() == "my notes\n"


@pytest.mark.parametrize("name", ["score", "best-of-n"])
def test_tools_and_arguments_of_the_template_count(name, pipeline, capsys):
    student, output = str(pipeline.path("student")), pipeline.path("out.jsonl")
    tokenizer = tokenizer_of("bytes")
    tokenizer.chat_template = "{% if tools %}{{ tools | tojson }}{% endif %}{{ mark }}" + CHAT_TEMPLATE
    tokenizer.save_pretrained(student)
    prompt, answer = [{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "Yes."}]
    column = {"completion": answer} if name == "score" else {"completions": [answer]}
    option, key = ("--input", "reward") if name == "score" else ("--prompts", "rewards")
    model = "--model" if name == "score" else "--reward_model"
    words = [name, model, student, option, str(pipeline.path("rows.jsonl"))]
    scorer = RewardScorer.from_pretrained(student)
    other = [{**TOOLS[0], "type": "other"}]
    for number, (first, second) in enumerate(
        [
            ({}, {"tools": TOOLS}),
            ({"tools": TOOLS}, {}),
            ({"tools": TOOLS}, {"tools": other}),
            ({}, {"chat_template_kwargs": {"mark": "zebra"}}),
        ]
    ):
        output = pipeline.path(f"{number}.jsonl")
        pipeline.write_rows("rows.jsonl", [{"prompt": prompt, **column, **first}])
        assert main([*words, "--output", str(output)]) == 0
        (row,) = lines(output)
        wanted = scorer([prompt], [answer], **{name: [value] for name, value in first.items()})
        assert (row[key] if name == "best-of-n" else [row[key]]) == pytest.approx(wanted, abs=1e-5)
        pipeline.write_rows("rows.jsonl", [{"prompt": prompt, **column, **second}])
        assert main([*words, "--output", str(output)]) == 2
        (changed,) = {*first, *second}
        assert f"`{changed}` has changed since" in capsys.readouterr().err
        assert lines(output) == [row]


@pytest.mark.parametrize("name", ["score", "best-of-n", "diagnose", "reward", "candidates"])
def test_half_a_character_anywhere_is_named_before_work(name, pipeline, capsys):
    good, student = (
        {**PAIRS[0], "completions": ["a", "b"], "gold_rewards": [0, 1], "meta": "x"},
        pipeline.path("student"),
    )
    source = pipeline.write_rows("rows.jsonl", [good, {**good, "meta": {"a": ["tag \ud83d"]}}])
    out = ["--output", str(pipeline.path("out"))]
    words = {
        "score": ["score", "--model", str(student), "--input", source],
        "best-of-n": ["best-of-n", "--reward_model", str(student), "--prompts", source],
        "diagnose": ["diagnose", "--model", str(student), "--data", source],
        "reward": pipeline.plain("out", dataset_name=source),
        "candidates": ["diagnose", "--model", str(student), "--data", str(pipeline.path("data", "train.jsonl"))],
    }[name]
    words += ["--candidates", source] if name == "candidates" else []
    assert main([*words, *([] if name == "reward" else out)]) == 2
    assert f"Line 2 of {source}, `meta`, holds half a character" in capsys.readouterr().err
    assert not pipeline.path("out").is_file()
