"""A policy and reward models in folders, and best-of-n jobs over them."""

from __future__ import annotations

import pytest
from support.models import build_student
from support.selection import PROMPTS, build_policy, write_rows
from support.tokenizers import tokenizer_of

from hf_interdistill import BestOfNConfig


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
