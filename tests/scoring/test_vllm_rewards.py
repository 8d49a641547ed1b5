"""Reward models on a real vLLM server, against the same models in process (`make test-server`)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import pytest
import requests
import torch
from support import foreign
from support.datasets import ROOT, read_rows
from support.models import build_student
from support.rl import grpo_trainer, save_policy
from support.serving import served
from support.tokenizers import tokenizer_of
from support.training_runs import config
from support.vllm_process import CLASSIFIER, vllm
from transformers import pipeline

from hf_interdistill import InteractionDistillationTrainer, RemoteRewardScorer, RewardScorer
from hf_interdistill.scoring.serving import export_reward_model
from hf_interdistill.serving.app import RewardApp

pytestmark = pytest.mark.server
SHAPE = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
NEAR = 1e-5  # of rewards in float32
DEMO = ROOT / "runs" / "demo" / "interaction"


def test_rewards_are_those_in_process(tmp_path):
    scorer = RewardScorer(build_student("llama", **SHAPE), tokenizer_of("bytes"))
    export_reward_model(scorer, str(tmp_path / "model"))
    rows = read_rows()[:6]
    prompts, chosen = [row["prompt"] for row in rows], [row["chosen"] for row in rows]
    with vllm(tmp_path / "model", tmp_path / "log.txt", *CLASSIFIER) as url:
        remote = RemoteRewardScorer(url, api="classify", model="lm", tokenizer=str(tmp_path / "model"), batch_size=4)
        assert remote(prompts, chosen) == pytest.approx(scorer(prompts, chosen), rel=NEAR, abs=NEAR)
        texts = ["Bread is made of flour.", "No."]
        plain = remote(["Tell me. "] * 2, texts)
        assert plain == pytest.approx(scorer(["Tell me. "] * 2, texts), rel=NEAR, abs=NEAR)
        with pytest.raises(ValueError, match="The tokenizer is not that of 'lm'"):
            RemoteRewardScorer(url, api="classify", tokenizer=tokenizer_of("metaspace")).check()
        with pytest.raises(ValueError, match=r"is a server of vllm\. .*set `api` to 'classify'"):
            RemoteRewardScorer(url)(prompts, chosen)


def test_a_trained_model_has_one_reward_wherever_it_is_served_and_trains_a_policy(tmp_path, dataset):
    """Saved by the trainer; the servers and the pipeline are told nothing about activations."""
    trainer = InteractionDistillationTrainer(
        build_student("llama", **SHAPE),
        config(tmp_path, max_steps=2, alignment_weight=0),
        train_dataset=dataset,
        processing_class=tokenizer_of("bytes"),
    )
    trainer.train()
    folder = tmp_path / "saved"
    trainer.save_model(str(folder))
    with served_by_vllm(folder, tmp_path) as remote:
        train_policy(remote, tmp_path)


@pytest.mark.skipif(not DEMO.is_dir(), reason="the model of `make demo` is not there")
def test_the_demos_model_has_one_reward_wherever_it_is_served_and_trains_a_policy(tmp_path):
    with served_by_vllm(DEMO, tmp_path) as remote:
        train_policy(remote, tmp_path)


def test_a_converted_model_has_one_reward_wherever_it_is_served_and_trains_a_policy(tmp_path):
    """A value head of LLaMA-Factory: its rewards by plain torch before the conversion."""
    source, output = tmp_path / "source", tmp_path / "converted"
    original = foreign.save_policy(source, **SHAPE)
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(1, SHAPE["hidden_size"], generator=generator)
    foreign.save_value_head(source, weight, torch.zeros(1))
    scorer = foreign.convert(source, output)
    rows = foreign.rows_of(scorer.tokenizer)
    foreign.assert_rewards(scorer, rows, foreign.linear_rewards(original, rows, weight))
    with served_by_vllm(output, tmp_path) as remote:
        train_policy(remote, tmp_path)


def train_policy(remote: RemoteRewardScorer, tmp_path) -> None:
    """A step of GRPO, whose rewards are those of the server."""
    trainer = grpo_trainer(tmp_path / "grpo", save_policy(tmp_path), [remote], read_rows()[0]["prompt"])
    trainer.train()
    (log,) = [row for row in trainer.state.log_history if "reward" in row]
    assert math.isfinite(log["reward"]) and log["reward"] != 0


@contextlib.contextmanager
def served_by_vllm(folder, tmp_path) -> Iterator[RemoteRewardScorer]:
    """A scorer on vLLM, after the rewards of pipeline, `interdistill serve` and vLLM were those in process."""
    scorer = RewardScorer.from_pretrained(str(folder))
    rows = read_rows()[:6]
    prompts, chosen = [row["prompt"] for row in rows], [row["chosen"] for row in rows]
    expected = scorer(prompts, chosen)
    assert all(abs(reward - 1 / (1 + math.exp(-reward))) > 1e-3 for reward in expected)  # a sigmoid would be seen
    conversations = [[*prompt, *answer] for prompt, answer in zip(prompts, chosen, strict=True)]
    found = {"pipeline": rewards_of_pipeline(folder, conversations)}
    with served(RewardApp(RewardScorer.from_pretrained(str(folder)), "rm")) as url:
        found["interdistill serve"] = RemoteRewardScorer(url, model="rm")(prompts, chosen)
        found["its /classify"] = [classified(url, "rm", messages) for messages in conversations]
    with vllm(folder, tmp_path / "log.txt", "--runner", "pooling", "--convert", "classify") as url:
        remote = RemoteRewardScorer(url, api="classify", tokenizer=str(folder), model="lm")
        found["vLLM, token ids"] = remote(prompts, chosen)
        found["vLLM, messages"] = [classified(url, "lm", messages) for messages in conversations]
        for name, rewards in found.items():
            differences = [abs(reward - wanted) for reward, wanted in zip(rewards, expected, strict=True)]
            print(f"{name}: largest difference {max(differences):.1e} of rewards up to {max(map(abs, expected)):.2g}")
        for name, rewards in found.items():
            assert rewards == pytest.approx(expected, rel=NEAR, abs=NEAR), name
        yield remote


def rewards_of_pipeline(folder, conversations: list) -> list[float]:
    scores = pipeline("text-classification", model=str(folder), device="cpu")
    texts = [scores.tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
    return [scores(text, add_special_tokens=False)[0]["score"] for text in texts]


def classified(url: str, model: str, messages: list[dict]) -> float:
    """The reward by a request of messages, as a client of vLLM sends it."""
    body = {"model": model, "messages": messages, "add_special_tokens": False}
    answer = requests.post(f"{url}/classify", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"][0]["probs"][0]
