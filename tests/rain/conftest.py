"""Tiny causal language models, and ways to search with them."""

from __future__ import annotations

import pytest
import torch
from conftest import SHARED_DATA, STUDENT_FAMILIES, tokenizer_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

from hf_interdistill.rain.config import RainConfig

STORIES = SHARED_DATA / "stories260k"
CAUSAL_FAMILIES = {**STUDENT_FAMILIES, "gemma": STUDENT_FAMILIES["llama"]}
TREE_FAMILIES = ("llama", "qwen3", "gemma", "gpt2")
PROMPTS = ["How do I bake bread?", "Tell me", "What is the best way to learn how to play the piano?"]
COPYING_FAMILIES = ("mistral", "gemma3_text")
# Few iterations, so that a test takes a second; long enough edges to branch and to be pruned.
QUICK = {"seed": 3, "iterations": 8, "extra_iterations": 3, "min_visits": 2, "candidates": 4, "rollout_max_tokens": 6}


def build_causal(family: str = "llama", attention: str = "sdpa", seed: int = 0, **changes):
    """A tiny causal LM with random weights, sharp enough for its likeliest tokens to differ."""
    shape = {key: value for key, value in {**CAUSAL_FAMILIES[family], **changes}.items() if value is not None}
    set_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape), attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    return model.eval()


def quick_config(**changes) -> RainConfig:
    return RainConfig(**{**QUICK, **changes})


def likes_short_words(texts: list[str]) -> list[float]:
    """A scorer with many different values, so that searches go different ways."""
    return [1 - 2 * (sum(map(ord, text)) % 97) / 96 for text in texts]


def encode(tokenizer, prompts: list[str]):
    tokenizer.padding_side = "left"
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    return {key: inputs[key] for key in ("input_ids", "attention_mask")}


def rain(model, tokenizer, prompts=PROMPTS, /, **settings):
    """`generate` by the strategy of RAIN; texts as prompts, or inputs that are ready."""
    own = {
        "strategy": "rain",
        "tokenizer": tokenizer,
        "rain_config": quick_config(),
        "rain_scorer": likes_short_words,
        "return_dict_in_generate": True,
        **settings,
    }
    inputs = encode(tokenizer, prompts) if isinstance(prompts, list) else prompts
    return model.generate(**inputs, **own)


@pytest.fixture(scope="session")
def _model():
    return build_causal()


@pytest.fixture
def model(_model):
    return _model


@pytest.fixture
def tokenizer():
    return tokenizer_of("bytes")


@pytest.fixture(scope="session")
def stories():
    """A real language model of 260,032 parameters, and its tokenizer."""
    if not STORIES.is_dir():
        pytest.skip(f"needs the stories260k model in {STORIES}")
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    tokenizer.pad_token_id = 0
    return AutoModelForCausalLM.from_pretrained(STORIES).eval(), tokenizer
