"""A tiny scorer, and its application."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient
from support.models import build_student
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardScorer
from hf_interdistill.serving.app import Limits, RewardApp

NAME = "tiny"


@pytest.fixture
def scorer() -> RewardScorer:
    return RewardScorer(build_student("llama"), tokenizer_of("bytes"), batch_size=4)


@pytest.fixture
def twin() -> RewardScorer:
    """The same model, used outside the server."""
    return RewardScorer(build_student("llama"), tokenizer_of("bytes"), batch_size=4)


@pytest.fixture
def client(scorer):
    with TestClient(RewardApp(scorer, NAME, limits=Limits(max_queue=64)).asgi) as client:
        yield client
