"""A `RewardEnsemble` wherever a scorer goes: commands, benchmarks, RAIN, GRPO, servers."""

from __future__ import annotations

import json

import pytest
import requests
import torch
from support.datasets import read_rows
from support.models import build_student
from support.rain import build_causal
from support.rl import grpo_trainer
from support.serving import served
from support.tokenizers import tokenizer_of

from hf_interdistill import RemoteRewardScorer, RewardEnsemble, RewardScorer
from hf_interdistill.cli import main
from hf_interdistill.rain.api.job_config import RainJobConfig
from hf_interdistill.rain.api.jobs import run_rain_job
from hf_interdistill.rain.scorers.base import Exchange
from hf_interdistill.rain.scorers.resolve import as_scorer
from hf_interdistill.reward_benchmarks.running import fingerprint_model
from hf_interdistill.serving.app import RewardApp

ROWS = read_rows()[:4]
PROMPTS, ANSWERS = [row["prompt"] for row in ROWS], [row["chosen"] for row in ROWS]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def save(folder, seed: int) -> str:
    build_student(seed=seed).save_pretrained(folder)
    tokenizer_of("bytes").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def files(tmp_path):
    """Two reward models `rm0` and `rm1`, their `ensemble` (the worst of the two), and rows."""
    folders = [save(tmp_path / f"rm{seed}", seed) for seed in range(2)]
    RewardEnsemble.from_pretrained(folders, aggregation="worst").save_pretrained(tmp_path / "ensemble")
    for name, keys in (("pairs", ("prompt", "chosen", "rejected")), ("prompts", ("prompt",))):
        rows = [json.dumps({key: row[key] for key in keys}) + "\n" for row in ROWS]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    return tmp_path


def members(files) -> list[RewardScorer]:
    return [RewardScorer.from_pretrained(str(files / f"rm{seed}")) for seed in range(2)]


def worst(files, prompts, answers) -> list[float]:
    return [min(pair) for pair in zip(*(member(prompts, answers) for member in members(files)), strict=True)]


def test_the_command_score(files, capsys):
    command = ["score", "--model", str(files / "ensemble"), "--input", str(files / "pairs.jsonl")]
    assert main([*command, "--output", str(files / "scored.jsonl")]) == 0
    rows = lines(files / "scored.jsonl")
    wanted = worst(files, [row["prompt"] for row in rows], [row["rejected"] for row in rows])
    assert [row["reward_rejected"] for row in rows] == pytest.approx(wanted, abs=1e-5)
    RewardEnsemble.from_pretrained(files / "ensemble", aggregation="mean").save_pretrained(files / "ensemble")
    assert main([*command, "--output", str(files / "scored.jsonl")]) == 2
    assert "settings" in capsys.readouterr().err  # rows by the worst and by the mean are not mixed
    (files / "rm1").rename(files / "elsewhere")
    assert main([*command, "--output", str(files / "again.jsonl")]) == 2
    assert "rm1 is not there" in capsys.readouterr().err


def test_the_command_eval_scores_again_when_a_member_or_the_rule_changes(files):
    row = {"prompt": "Tell me", "chosen": "Yes, gladly.", "rejected": "No", "id": 1, "subset": "alpacaeval-easy"}
    (files / "bench.jsonl").write_text(json.dumps(row) + "\n")
    name = str(files / "ensemble")
    command = ["eval", "--benchmark", "reward_bench", "--data", str(files / "bench.jsonl"), "--model", name]
    assert main([*command, "--output", str(files / "out")]) == 0
    (scored,) = lines(files / "out" / "scores.jsonl")
    answers = [[{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")]
    prompts = [[{"role": "user", "content": "Tell me"}]] * 2
    assert scored["rewards"] == pytest.approx(worst(files, prompts, answers), abs=1e-5)
    keys = {fingerprint_model(name)}
    save(files / "rm1", 5)
    keys.add(fingerprint_model(name))
    RewardEnsemble.from_pretrained(name, aggregation="mean").save_pretrained(name)
    keys.add(fingerprint_model(name))
    assert len(keys) == 3


def test_best_of_n_picks_by_it(files, capsys):
    rows = [{"id": i, "prompt": row["prompt"], "completions": ["Yes.", "No, never.", "It depends."]} for i, row in
            enumerate(ROWS)]  # fmt: skip
    (files / "candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["best-of-n", "--reward_model", str(files / "ensemble"), "--prompts", str(files / "candidates.jsonl")]
    assert main([*command, "--output", str(files / "best.jsonl")]) == 0
    for row in lines(files / "best.jsonl"):
        wanted = worst(files, [row["prompt"]] * 3, row["completions"])
        assert row["rewards"] == pytest.approx(wanted, abs=1e-5)
    RewardEnsemble.from_pretrained(files / "ensemble", aggregation="mean").save_pretrained(files / "ensemble")
    assert main([*command, "--output", str(files / "best.jsonl")]) == 2
    assert "settings" in capsys.readouterr().err


def test_rain_is_steered_by_it(files):
    scorer = as_scorer(RewardEnsemble.from_pretrained(str(files / "ensemble"))).bind(build_causal(), None)
    values = scorer.score([Exchange("Tell me. ", text) for text in ("Yes.", "Never")])
    wanted = torch.tensor(worst(files, ["Tell me. "] * 2, ["Yes.", "Never"])).tanh().tolist()
    assert values == pytest.approx(wanted, abs=1e-5)
    build_causal().save_pretrained(files / "lm")
    tokenizer_of("bytes").save_pretrained(files / "lm")
    config = RainJobConfig(
        model=str(files / "lm"),
        prompts=str(files / "prompts.jsonl"),
        output=str(files / "rain.jsonl"),
        scorer="reward",
        reward_model=str(files / "ensemble"),
        generation={"max_new_tokens": 2},
        rain={"iterations": 2, "extra_iterations": 1, "candidates": 2, "similarity_model": None},
    )
    assert run_rain_job(config)["searched"] == len(ROWS)
    assert run_rain_job(config)["searched"] == 0
    RewardEnsemble.from_pretrained(files / "ensemble", aggregation="mean").save_pretrained(files / "ensemble")
    with pytest.raises(ValueError, match="settings"):
        run_rain_job(config)


def test_grpo_trains_against_it(files):
    ensemble = RewardEnsemble(members(files), aggregation="uncertainty")
    trainer = grpo_trainer(files / "grpo", build_causal(), [ensemble])
    trainer.train()
    assert any("rewards/uncertainty_of_2/mean" in entry for entry in trainer.state.log_history)


def test_a_server_answers_with_it_and_servers_can_be_members(files):
    wanted = worst(files, PROMPTS, ANSWERS)
    with served(RewardApp(RewardEnsemble.from_pretrained(str(files / "ensemble")), "both")) as url:
        assert RemoteRewardScorer(url)(PROMPTS, ANSWERS) == pytest.approx(wanted, abs=1e-5)
        ids = members(files)[0].encode(PROMPTS[0], ANSWERS[0], {})
        answer = requests.post(f"{url}/classify", json={"model": "both", "input": [ids]}, timeout=60).json()
        assert answer["data"][0]["probs"] == pytest.approx(wanted[:1], abs=1e-5)
        answer = requests.post(f"{url}/classify", json={"model": "both", "input": [[900]]}, timeout=60)
        assert answer.status_code == 400 and "0 to 899" in answer.text
    with served(RewardApp(members(files)[0], "first")) as url:
        ensemble = RewardEnsemble.from_pretrained([url, str(files / "rm1")], aggregation="worst")
        assert ensemble(PROMPTS, ANSWERS) == pytest.approx(wanted, abs=1e-5)
        ensemble.save_pretrained(files / "mixed")
        assert json.loads((files / "mixed" / "reward_ensemble.json").read_text())["members"] == [url, "../rm1"]
        loaded = RewardEnsemble.from_pretrained(files / "mixed")
        assert loaded(PROMPTS, ANSWERS) == pytest.approx(wanted, abs=1e-5)
        with pytest.raises(ValueError, match="A server needs members that are loaded here and read the same tokens"):
            RewardApp(loaded, "mixed")
