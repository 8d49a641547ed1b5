"""A server with the tiny causal language model."""

from __future__ import annotations

import pytest
from support.vllm_server import VllmLike, served


@pytest.fixture
def backend(model, tokenizer):
    return VllmLike(model, tokenizer)


@pytest.fixture
def url(backend):
    with served(backend) as address:
        yield address
