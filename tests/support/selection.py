"""A tiny policy, reward models, prompts, and jobs over them."""

from __future__ import annotations

import json

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, set_seed

from support.models import STUDENT_FAMILIES

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


def samples(path) -> list:
    return [(row["id"], row["completions"], row["finish_reasons"]) for row in read(path)]
