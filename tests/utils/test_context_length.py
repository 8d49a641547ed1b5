"""The number of tokens that a model can read, by its positions and its tokenizer."""

from __future__ import annotations

import pytest
from support.models import build_encoder, build_student
from support.tokenizers import tokenizer_of
from transformers import AutoConfig, AutoModel

from hf_interdistill.utils.context_length import context_length


@pytest.mark.parametrize(
    ("family", "expected"),
    [("bert", 512), ("roberta", 512), ("modernbert", 512), ("electra", 512), ("deberta-v2", 512)],
)
def test_encoders(family, expected):
    model, tokenizer = build_encoder(family)  # RoBERTa has 516 positions, counted from 4: its padding token is 3
    assert context_length(model) == context_length(model, tokenizer) == expected


@pytest.mark.parametrize("family", ["xlm-roberta", "camembert", "mpnet"])
def test_families_that_count_positions_from_the_padding_token(family):
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = AutoConfig.for_model(family, vocab_size=20, max_position_embeddings=34, pad_token_id=1, **shape)
    assert context_length(AutoModel.from_config(config)) == 32


@pytest.fixture
def unlimited():
    """A model with ALiBi, which has no table of positions."""
    return build_student("bloom", attention="eager")


def test_decoders(unlimited):
    assert context_length(build_student("llama")) == context_length(build_student("gpt2")) == 512
    assert context_length(unlimited) is None and context_length(unlimited, tokenizer_of("bytes")) is None


def test_the_tokenizer_limits_too(unlimited):
    tokenizer = tokenizer_of("bytes")
    tokenizer.model_max_length = 128
    assert context_length(build_student(), tokenizer) == context_length(unlimited, tokenizer) == 128
    tokenizer.model_max_length = 1024
    assert context_length(build_student(), tokenizer) == 512


def test_models_in_a_wrapper():
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
    assert context_length(peft.get_peft_model(build_student(), adapter)) == 512
