"""Prompts that cannot be scored, changed prompts, and settings of the model, in best-of-n jobs."""

from __future__ import annotations

import math

import pytest
from support.selection import PROMPTS, build_policy, read, samples, write_rows
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardScorer, run_best_of_n
from hf_interdistill.cli import main
from hf_interdistill.selection.candidates import CandidateSampler
from hf_interdistill.utils.sharded_jobs import FailedRowsError


@pytest.fixture
def failing(monkeypatch):
    """Prompts for which the reward model raises, or gives the value."""
    prompts: dict[str, Exception | float] = {}
    original = RewardScorer.__call__

    def call(self, given, completions, **settings):
        for prompt in given:
            if isinstance(prompts.get(prompt), Exception):
                raise prompts[prompt]
        rewards = original(self, given, completions, **settings)
        return [prompts.get(prompt, reward) for prompt, reward in zip(given, rewards, strict=True)]

    monkeypatch.setattr(RewardScorer, "__call__", call)
    return prompts


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (RuntimeError("no more"), "RuntimeError: no more"),
        (math.nan, "ValueError: `rewards` are .*nan.*: a broken model"),
        (ValueError("half \ud800"), r"ValueError: half \\ud800"),
    ],
)
def test_a_prompt_that_cannot_be_scored_gets_an_error(job, failing, tmp_path, fault, message):
    whole = job(output=str(tmp_path / "whole.jsonl"))
    run_best_of_n(whole)
    failing[PROMPTS[2]] = fault
    config = job(selected=str(tmp_path / "best.jsonl"), batch_size=64)
    for _ in range(2):
        with pytest.raises(FailedRowsError, match=f"1 of 5 rows of .* first is id 'p2': {message}"):
            run_best_of_n(config)
        rows = read(config.output)
        assert (
            ["rewards" in row for row in rows]
            == ["error" not in row for row in rows]
            == [True] * 2 + [False] + [True] * 2
        )
        assert not (tmp_path / "best.jsonl").exists()
    failing.clear()
    summary = run_best_of_n(config)
    assert (summary["scored"], summary["selected"]) == (1, 5) and samples(config.output) == samples(whole.output)


def test_the_command_counts_the_errors(job, failing, capsys):
    failing["Tell me"] = RuntimeError("no more")
    config = job()
    command = ["best-of-n", "--generation", '{"max_new_tokens": 5}', "--n", "4"]
    for name in ("prompts", "output", "reward_model", "model"):
        command += [f"--{name}", getattr(config, name)]
    assert main(command) == 2
    assert "2 of 5 rows of" in capsys.readouterr().err
    failing.clear()
    assert main(command) == 0


def test_changed_candidates_are_shown_with_the_old_ones(job, tmp_path):
    def ready(completions):
        rows = [{"prompt": "Why?", "completions": completions}, {"prompt": "Tell me", "completions": ["a", "b"]}]
        return job(model=None, generation={}, prompts=write_rows(tmp_path / "ready.jsonl", rows))

    run_best_of_n(ready(["one", "two"]))
    with pytest.raises(
        ValueError, match=r"id 1, but its `completions` has changed since: it was .*two.*, and is .*six"
    ):
        run_best_of_n(ready(["one", "six"]))
    config = ready(["one", "two"])
    assert run_best_of_n(config)["scored"] == 0


@pytest.mark.parametrize("batch_size", [1, 20])
def test_a_total_length_counts_each_prompt(batch_size):
    """Whatever stands beside it in a batch: as many new tokens as `max_new_tokens` would say for it alone."""
    model, tokenizer = build_policy(), tokenizer_of("bytes")
    requests = [(number, prompt, 0) for number, prompt in enumerate(PROMPTS)]
    found = CandidateSampler(model, tokenizer, {"max_length": 16}, seed=0, batch_size=batch_size)(requests)
    for request, candidate in zip(requests, found, strict=True):
        room = 16 - len(tokenizer(request[1])["input_ids"])
        (alone,) = CandidateSampler(model, tokenizer, {"max_new_tokens": room}, seed=0, batch_size=1)([request])
        assert room > 0 and candidate == alone


def test_the_models_own_settings_count_or_are_refused():
    model, tokenizer = build_policy(), tokenizer_of("bytes")
    requests = [("x", "Tell me", i) for i in range(6)]
    free = CandidateSampler(model, tokenizer, {"max_new_tokens": 8}, seed=0, batch_size=5)(requests)
    letter = next(each for each in free[0].text if each.isalpha())
    model.generation_config.stop_strings = [letter]
    model.generation_config.num_beams = 3
    model.generation_config.max_new_tokens = 64
    stopped = CandidateSampler(model, tokenizer, {"max_new_tokens": 8}, seed=0, batch_size=5)(requests)
    assert stopped[0].finish_reason == "stop" and stopped[0].text == free[0].text[: free[0].text.index(letter) + 1]
    short = CandidateSampler(model, tokenizer, {"max_length": 4, "stop_strings": []}, seed=0, batch_size=5)
    assert short.config.max_length == 4 and short.config.max_new_tokens is None
    model.generation_config.max_time = 3.0
    with pytest.raises(ValueError, match=r"The model's generation config has `max_time: 3\.0`"):
        CandidateSampler(model, tokenizer, {"max_new_tokens": 8}, seed=0, batch_size=5)


def test_an_unknown_role_is_named_by_prompt_and_candidate(job, tmp_path):
    rows = [
        {"id": "good", "prompt": [{"role": "user", "content": "Why?"}], "completions": ["a", "b"]},
        {"id": "bad", "prompt": [{"role": "critic", "content": "Why?"}], "completions": ["a", "b"]},
    ]
    config = job(model=None, generation={}, prompts=write_rows(tmp_path / "roles.jsonl", rows), batch_size=64)
    with pytest.raises(FailedRowsError, match=r"id 'bad': ValueError: Candidate 0: .*unknown role 'critic'"):
        run_best_of_n(config)
    assert "rewards" in read(config.output)[0]
