"""Jobs on reward servers do not continue with another model, tokenizer or API behind the same name."""

from __future__ import annotations

import copy
import json
import logging

import pytest
import requests
import torch
from support.datasets import read_rows
from support.models import build_student
from support.selection import write_rows
from support.serving import served as served_by_us
from support.tokenizers import tokenizer_of
from support.vllm_server import VllmLike, served

from hf_interdistill import BestOfNConfig, RewardEnsemble, RewardScorer, run_best_of_n
from hf_interdistill.cli import main
from hf_interdistill.serving.app import RewardApp
from hf_interdistill.serving.digest import digest_of_scorer

NAME = "rm"
BENCH = {"prompt": "Tell me", "chosen": "Yes, gladly.", "rejected": "No", "id": 1, "subset": "alpacaeval-easy"}


def scorer_of(seed=0, **changes) -> RewardScorer:
    scorer = RewardScorer(build_student(seed=seed), copy.deepcopy(tokenizer_of("bytes")))
    for name, value in changes.items():
        setattr(scorer.tokenizer, name, value)
    return scorer


def retemplated(folder, suffix):
    tokenizer = copy.deepcopy(tokenizer_of("bytes"))
    tokenizer.chat_template += suffix
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def files(tmp_path):
    rows = read_rows()[:4]
    write_rows(tmp_path / "pairs.jsonl", [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows])
    write_rows(tmp_path / "bench.jsonl", [BENCH])
    given = [{"id": i, "prompt": f"Tell me {i}", "completions": ["a", "b"]} for i in range(4)]
    write_rows(tmp_path / "given.jsonl", given)
    return tmp_path


def rewards_of_eval(files, *options) -> list:
    command = ["eval", "--benchmark", "reward_bench", "--data", str(files / "bench.jsonl"), "--model", NAME]
    assert main([*command, "--output", str(files / "eval"), *options]) == 0
    path = files / "eval" / "results.json"
    assert json.loads(path.read_text())
    scores = (files / "eval" / "scores.jsonl").read_text().splitlines()
    return [json.loads(line)["rewards"] for line in scores]


def test_the_digest_tells_what_rewards_depend_on():
    digest = digest_of_scorer(scorer_of())
    assert digest == digest_of_scorer(scorer_of())
    others = [scorer_of(seed=1), scorer_of(chat_template="{{ messages }}"), scorer_of(), scorer_of(), scorer_of()]
    with torch.no_grad():
        others[2].model.score.weight[0, 0] += 1e-6
    others[3].model.to(torch.bfloat16)
    others[4] = RewardEnsemble([scorer_of(), scorer_of(seed=1)])
    assert len({digest, *map(digest_of_scorer, others)}) == 6


def test_the_server_tells_it():
    scorer = scorer_of()
    with served_by_us(RewardApp(scorer, NAME)) as url:
        (model,) = requests.get(f"{url}/v1/models", timeout=30).json()["data"]
    assert model["digest"] == digest_of_scorer(scorer_of())


def test_eval_scores_a_model_again_that_was_trained_again(files):
    found = []
    for seed in (0, 0, 1):
        with served_by_us(RewardApp(scorer_of(seed), NAME)) as url:
            found = rewards_of_eval(files, "--reward_server", url)
    assert len(found) == 2
    local = scorer_of(1)
    prompt = [{"role": "user", "content": "Tell me"}]
    wanted = [local([prompt], [[{"role": "assistant", "content": BENCH[side]}]])[0] for side in ("chosen", "rejected")]
    assert found[1] == pytest.approx(wanted, abs=1e-5)


def test_eval_scores_again_with_another_template_or_folder(files, caplog):
    backend = VllmLike(None, tokenizer_of("bytes"), NAME, reward_model=build_student())
    plain, other = retemplated(files / "plain", ""), retemplated(files / "other", " ")
    with served(backend) as url:
        options = ["--reward_server", url, "--reward_api", "classify", "--reward_tokenizer"]
        with caplog.at_level(logging.WARNING):
            assert len(rewards_of_eval(files, *options, plain)) == 1
            assert len(rewards_of_eval(files, *options, plain)) == 1
        warnings = [each for each in caplog.messages if "does not tell which weights it has of 'rm'" in each]
        assert len(warnings) == 1
        assert len(rewards_of_eval(files, *options, other)) == 2
        backend.root = "/models/second"
        assert len(rewards_of_eval(files, *options, other)) == 3


def test_score_is_not_continued_with_another_model(files, capsys):
    command = ["score", "--model", NAME, "--input", str(files / "pairs.jsonl")]
    command += ["--output", str(files / "scored.jsonl")]
    with served_by_us(RewardApp(scorer_of(), NAME)) as url:
        assert main([*command, "--reward_server", url]) == 0
        assert main([*command, "--reward_server", url]) == 0
    with served_by_us(RewardApp(scorer_of(1), NAME)) as url:
        assert main([*command, "--reward_server", url]) == 2
    assert "was made with other settings (served differ)" in capsys.readouterr().err


def test_best_of_n_is_not_continued_with_another_model(files):
    settings = {"prompts": str(files / "given.jsonl"), "output": str(files / "best.jsonl"), "reward_model": NAME}
    with served_by_us(RewardApp(scorer_of(), NAME)) as url:
        run_best_of_n(BestOfNConfig(reward_server=url, **settings))
    rows = (files / "best.jsonl").read_text().splitlines(keepends=True)
    (files / "best.jsonl").write_text("".join(rows[:2]))
    other, message = RewardApp(scorer_of(1), NAME), "was made with another model behind the same name"
    with served_by_us(other) as url, pytest.raises(ValueError, match=message):
        run_best_of_n(BestOfNConfig(reward_server=url, **settings))
    assert (files / "best.jsonl").read_text() == "".join(rows[:2])
    with served_by_us(RewardApp(scorer_of(), NAME)) as url:
        assert run_best_of_n(BestOfNConfig(reward_server=url, **settings))["scored"] == 2


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ({"server": "http://a", "tokenizer": "a"}, {"server": "http://b", "tokenizer": "b"}, "tokenizer"),
        (
            {"reward_server": "http://a"},
            {"reward_server": "http://a", "reward_api": "classify", "reward_tokenizer": "a"},
            "reward_api",
        ),
        (
            {"reward_server": "http://a", "reward_api": "classify", "reward_tokenizer": "a"},
            {"reward_server": "http://a", "reward_api": "classify", "reward_tokenizer": "b"},
            "reward_tokenizer",
        ),
    ],
)
def test_settings_of_servers_that_decide_the_rows(first, second, name):
    common = {"prompts": "a", "output": "b", "reward_model": "rm", "model": "lm"}
    one, other = [BestOfNConfig(**common, **each).result_settings() for each in (first, second)]
    assert one[name] != other[name] or name not in one
    moved = {key: "http://c" if key.endswith("server") else value for key, value in first.items()}
    assert BestOfNConfig(**common, **moved).result_settings() == one
