"""Prompts that cannot be scored, and prompts that change between two runs of a job."""

import json
from pathlib import Path

import pytest
from support.job_scorers import failing_for
from support.rain import QUICK, build_causal
from support.tokenizers import tokenizer_of

from hf_interdistill.cli import main
from hf_interdistill.rain.api.jobs import RainJobConfig, run_rain_job
from hf_interdistill.utils.sharded_jobs import FailedRowsError

PROMPTS = ["How do I bake bread?", "Tell me", "Why is the sky blue?", "What is a piano?"]


@pytest.fixture
def job(tmp_path):
    build_causal().save_pretrained(tmp_path / "model")
    tokenizer_of("bytes").save_pretrained(tmp_path / "model")

    def make(prompts=PROMPTS, **changes) -> RainJobConfig:
        rows = [{"prompt": prompt} for prompt in prompts]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        paths = {name: str(tmp_path / file) for name, file in (("model", "model"), ("prompts", "prompts.jsonl"))}
        settings = {
            "output": str(tmp_path / "answers.jsonl"),
            "rain": QUICK,
            "scorer": "support.job_scorers:failing_for",
            "generation": {"max_new_tokens": 4, "pad_token_id": 3},
        }
        return RainJobConfig(**{**paths, **settings, **changes})

    return make


def rows_of(config) -> list[dict]:
    return [json.loads(line) for line in Path(config.output).read_text(encoding="utf-8").splitlines()]


def test_a_prompt_that_cannot_be_scored_ends_alone(job, monkeypatch):
    """The others get the answers that they get without it; the next run tries it again."""
    monkeypatch.setattr(failing_for, "prompts", [])
    whole = job(output=job().output + ".whole")
    run_rain_job(whole)
    monkeypatch.setattr(failing_for, "prompts", ["Tell me", "What is a piano?"])
    config = job()
    for _ in range(2):
        with pytest.raises(
            FailedRowsError, match=r"2 of 4 rows of .* have an `error`.* first is id 2: .*\\ud800 down"
        ):
            run_rain_job(config)
        rows = rows_of(config)
        assert [row["id"] for row in rows] == [1, 2, 3, 4] and ["error" in row for row in rows] == [False, True] * 2
        assert all(
            row["completion"] == other["completion"] for row, other in zip(rows[::2], rows_of(whole)[::2], strict=True)
        )
    monkeypatch.setattr(failing_for, "prompts", [])
    assert run_rain_job(config)["searched"] == 2
    assert [row["tokens"] for row in rows_of(config)] == [row["tokens"] for row in rows_of(whole)]
    assert not list(Path(config.output).parent.glob("*.shard-*"))


def test_the_command_counts_the_errors(job, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(failing_for, "prompts", ["Tell me"])
    config = job()
    command = ["rain", "--model", config.model, "--prompts", config.prompts, "--output", config.output]
    command += ["--rain", json.dumps(QUICK), "--scorer", config.scorer, "--generation", json.dumps(config.generation)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "1 of 4 rows of" in error and "Run the same command again to try these again." in error
    monkeypatch.setattr(failing_for, "prompts", [])
    assert main(command) == 0


def test_a_changed_prompt_is_shown_with_the_old_one(job, monkeypatch):
    monkeypatch.setattr(failing_for, "prompts", [])
    first = job()
    run_rain_job(first)
    before = rows_of(first)
    changed = [*PROMPTS[:2], "Why is the sky green?", PROMPTS[3]]
    with pytest.raises(
        ValueError, match=r"id 3, but its `prompt` has changed since: it was '.*blue\?', and is '.*green"
    ):
        run_rain_job(job(changed))
    with pytest.raises(ValueError, match=r"a result for id 4, but there is no such row in the input any more"):
        run_rain_job(job(PROMPTS[:3]))
    assert rows_of(first) == before
    assert run_rain_job(job([*PROMPTS, "And now?"]))["searched"] == 1
    again = job([*changed, "And now?"], overwrite=True)
    assert run_rain_job(again)["searched"] == 5 and rows_of(again)[2]["prompt"] == changed[2]


def test_a_prompt_with_an_error_may_be_mended(job, monkeypatch):
    monkeypatch.setattr(failing_for, "prompts", ["Tell me"])
    with pytest.raises(FailedRowsError):
        run_rain_job(job())
    config = job([PROMPTS[0], "Tell me all", *PROMPTS[2:]])
    assert run_rain_job(config)["searched"] == 1 and rows_of(config)[1]["prompt"] == "Tell me all"
