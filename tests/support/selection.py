"""A tiny policy, reward models, prompts, and jobs over them."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, set_seed

from hf_interdistill import BestOfNConfig
from support.models import STUDENT_FAMILIES, build_student, tokenizer_of

PROMPTS = ["How do I bake bread?", "Tell me", "Why is the sky blue over the sea?", "Tell me", "What is a piano?"]


def build_policy():
    set_seed(1)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**STUDENT_FAMILIES["llama"]))
    with torch.no_grad():
        model.lm_head.weight.mul_(8.0)
    return model


def write_rows(path, rows) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    build_policy().save_pretrained(folder / "policy")
    build_student().save_pretrained(folder / "rm")
    build_student(seed=5).save_pretrained(folder / "gold")
    for name in ("policy", "rm", "gold"):
        tokenizer_of("bytes").save_pretrained(folder / name)
    return folder


@pytest.fixture
def job(models, tmp_path):
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": prompt, "id": f"p{i}"} for i, prompt in enumerate(PROMPTS)])

    def make(**changes) -> BestOfNConfig:
        settings = {
            "prompts": str(tmp_path / "prompts.jsonl"),
            "output": str(tmp_path / "out" / "scored.jsonl"),
            "reward_model": str(models / "rm"),
            "model": str(models / "policy"),
            "n": 4,
            "generation": {"max_new_tokens": 5},
        }
        return BestOfNConfig(**{**settings, **changes})

    return make


def samples(path) -> list:
    return [(row["id"], row["completions"], row["finish_reasons"]) for row in read(path)]
