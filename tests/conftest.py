"""Settings of all tests, and tiny models and tokenizers as fixtures: no hub, no GPU."""

from __future__ import annotations

import gc
import importlib.util
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

import pytest
import torch
from datasets import Dataset
from support.datasets import read_rows
from support.models import build_encoder
from support.tokenizers import tokenizer_of
from transformers import PreTrainedTokenizerFast


def pytest_collection_modifyitems(items) -> None:
    reasons = {}
    if not torch.cuda.is_available():
        reasons["gpu"] = "needs a CUDA GPU"
    if "VLLM_PYTHON" not in os.environ:
        reasons["server"] = "needs VLLM_PYTHON, a Python that has vLLM (make test-server)"
    if importlib.util.find_spec("deepspeed") is None:
        reasons["distributed"] = "needs DeepSpeed (make test-distributed)"
    for item in items:
        for name, reason in reasons.items():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Every end of a training collects garbage, and would look at all modules again: a third of a second each time."""
    gc.collect()
    gc.freeze()


torch.set_num_threads(1)  # models this small only wait for each other's threads, and a fork must have one


@pytest.fixture(scope="session")
def rows() -> list[dict]:
    """Conversational preferences with an explicit prompt."""
    return read_rows()


@pytest.fixture
def dataset(rows) -> Dataset:
    return Dataset.from_list([{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows[:24]])


@pytest.fixture
def no_pictures(monkeypatch):
    """The picture of maps on the model card takes longer than a tiny model's training."""
    for name in ("example_maps", "draw_example_maps"):
        monkeypatch.setattr(f"hf_interdistill.interaction.publishing.{name}", lambda *args: None)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_of("bytes")


@pytest.fixture
def teacher_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_of("wordpiece")


@pytest.fixture
def teacher():
    from hf_interdistill import InteractionTeacher

    model, tokenizer = build_encoder()
    return InteractionTeacher.from_pretrained(model, tokenizer, max_length=256)


@pytest.fixture
def fitted_teacher(teacher):
    """A teacher that counts as trained (random weights, made-up metrics), where its quality does not matter."""
    teacher.metrics = {
        "accuracy": 0.7,
        "accuracy_chosen_first": 0.7,
        "accuracy_rejected_first": 0.7,
        "order_agreement": 0.9,
        "pairs": 100,
        "standard_error": 0.05,
        "is_better_than_chance": True,
    }
    return teacher
