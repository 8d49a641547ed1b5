"""A tiny causal language model and a real one, and where passes can be replayed."""

from __future__ import annotations

import pytest
import torch
from support.rain import STORIES, Repeating, build_causal
from support.tokenizers import tokenizer_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_interdistill.rain.kv_cache.cuda_graphs import CAPTURES


@pytest.fixture(scope="session")
def shared_model():
    return build_causal()


@pytest.fixture
def model(shared_model):
    return shared_model


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


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """Where passes can be replayed, in plain float32."""
    if request.param == "cpu":
        monkeypatch.setitem(CAPTURES, "cpu", Repeating)
    monkeypatch.setattr("hf_interdistill.rain.kv_cache.tree_cache._SLOTS_WITH_GRAPHS", 64)  # so that pools grow
    monkeypatch.setattr(Repeating, "captured", 0)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield request.param
    torch.set_float32_matmul_precision(precision)
