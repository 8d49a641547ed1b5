"""Settings of `generation` in a job are used or refused."""

import json
from pathlib import Path

import pytest
from support.rain import QUICK, build_causal
from support.tokenizers import tokenizer_of

from hf_interdistill.rain.api import job_output
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

    class Bar(job_output.tqdm):
        def set_postfix(self, *args, **kwargs):
            shown.append((self.n, kwargs["tokens"], kwargs["iterations"]))
            super().set_postfix(*args, **kwargs)

    monkeypatch.setattr(job_output, "tqdm", Bar)
    run_rain_job(job(generation={"max_new_tokens": 6, "pad_token_id": 3}))
    within = [each for each in shown if each[0] == 0]
    assert len({iterations for _, _, iterations in within}) > 3 and max(tokens for _, tokens, _ in within) > 0
    assert [each[2] for each in shown] == sorted(each[2] for each in shown) and shown[-1][:2] == (2, 12)


def test_settings_of_the_model_hold_in_a_job(job, tmp_path):
    model = build_causal()
    (token,) = tokenizer_of("bytes")("e")["input_ids"]
    model.generation_config.update(max_length=9, sequence_bias=[[[token], 1000.0]])
    model.save_pretrained(tmp_path / "model")
    config = job(generation={"pad_token_id": 3})
    run_rain_job(config)
    rows = [json.loads(line) for line in Path(config.output).read_text(encoding="utf-8").splitlines()]
    assert [len(tokenizer_of("bytes")(row["prompt"])["input_ids"]) + len(row["tokens"]) for row in rows] == [9, 9]
    model.generation_config.update(max_length=20, stop_strings=["ee"])
    model.save_pretrained(tmp_path / "model")
    config = job(generation={"pad_token_id": 3}, overwrite=True, seed=2, rain={**QUICK, "seed": 2})
    run_rain_job(config)
    rows = [json.loads(line) for line in Path(config.output).read_text(encoding="utf-8").splitlines()]
    # As in generate, a stop string may begin in the prompt ("Tell me").
    assert [(row["completion"], row["finish_reason"]) for row in rows] == [("ee", "stop"), ("e", "stop")]
    model.generation_config.update(max_time=3.0)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"`max_time` is 3\.0"):
        run_rain_job(job(generation={"pad_token_id": 3}, overwrite=True, rain={**QUICK, "seed": 4}))


def test_trees_of_a_number_and_a_text_are_two_files(job, tmp_path):
    rows = [{"prompt": "Tell me", "id": 1}, {"prompt": "Tell me all", "id": "1"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run_rain_job(job(generation={"max_new_tokens": 2, "pad_token_id": 3}, trees=str(tmp_path / "trees")))
    trees = [json.loads(path.read_text(encoding="utf-8"))["prompt"] for path in (tmp_path / "trees").iterdir()]
    assert sorted(trees) == ["Tell me", "Tell me all"] and (tmp_path / "trees" / "1.json").is_file()
