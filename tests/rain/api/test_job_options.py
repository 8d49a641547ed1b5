"""Settings of `generation` in a job are used or refused."""

import json
from pathlib import Path

import pytest
from support.rain import QUICK, build_causal
from support.tokenizers import tokenizer_of

from hf_interdistill.rain.api import jobs
from hf_interdistill.rain.api.jobs import RainJobConfig, load_scorer, run_rain_job


@pytest.fixture
def job(tmp_path):
    build_causal().save_pretrained(tmp_path / "model")
    tokenizer_of("bytes").save_pretrained(tmp_path / "model")
    rows = [{"prompt": "How do I bake bread?"}, {"prompt": "Tell me"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def make(**changes) -> RainJobConfig:
        paths = {name: str(tmp_path / file) for name, file in (("model", "model"), ("prompts", "prompts.jsonl"))}
        settings = {"output": str(tmp_path / "answers.jsonl"), "rain": QUICK, "scorer": "support.job_scorers:short"}
        return RainJobConfig(**{**paths, **settings, **changes})

    return make


def test_max_length_counts_prompt_and_answer(job):
    config = job(generation={"max_length": 12, "pad_token_id": 3})
    run_rain_job(config)
    for row in map(json.loads, Path(config.output).read_text(encoding="utf-8").splitlines()):
        prompt = len(tokenizer_of("bytes")(row["prompt"])["input_ids"])
        assert len(row["tokens"]) == 12 - prompt and row["finish_reason"] == "length"


def test_settings_of_one_call_are_refused(job):
    with pytest.raises(ValueError, match="`num_return_sequences` is 3, but a job writes one answer to each row"):
        job(generation={"num_return_sequences": 3})
    with pytest.raises(ValueError, match=r"`max_time` is 5\.0, but the prompts of a job share their forward passes"):
        job(generation={"max_time": 5.0})
    job(generation={"num_return_sequences": 1, "max_time": None})


def test_the_judge_gets_the_jobs_choice_of_graphs(job):
    assert load_scorer(job(scorer="self", rain={**QUICK, "cuda_graphs": False})).cuda_graphs is False


def test_progress_within_a_prompt_is_shown(job, monkeypatch):
    shown = []

    class Bar(jobs.tqdm):
        def set_postfix(self, *args, **kwargs):
            shown.append((self.n, kwargs["tokens"], kwargs["iterations"]))
            super().set_postfix(*args, **kwargs)

    monkeypatch.setattr(jobs, "tqdm", Bar)
    run_rain_job(job(generation={"max_new_tokens": 6, "pad_token_id": 3}))
    within = [each for each in shown if each[0] == 0]
    assert len({iterations for _, _, iterations in within}) > 3 and max(tokens for _, tokens, _ in within) > 0
    assert [each[2] for each in shown] == sorted(each[2] for each in shown) and shown[-1][:2] == (2, 12)
