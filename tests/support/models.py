"""Tiny models with random weights: no Hub, no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load
from transformers import AutoModel, AutoModelForSequenceClassification, set_seed

from support.tokenizers import tokenizer_of

needs_liftable_masks = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.2"),
    reason="nothing heeds `config.is_causal` before 5.2",
)
_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "vocab_size": 900,
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
STUDENT_FAMILIES: dict[str, dict] = {
    "llama": _SHAPE,
    "qwen3": _SHAPE,
    "mistral": {**_SHAPE, "sliding_window": 16},
    "gemma2": {**_SHAPE, "query_pre_attn_scalar": 8, "sliding_window": 16, "attn_logit_softcapping": 5.0},
    "gemma3_text": {**_SHAPE, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "gpt_neox": {**_SHAPE, "num_key_value_heads": None},
    "gpt2": {
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 512,
        "vocab_size": 900,
        "pad_token_id": 3,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "phi3": {**_SHAPE, "num_key_value_heads": 4},
}
_NO_HEAD_DIM = {key: value for key, value in _SHAPE.items() if key != "head_dim"}
_OLD_SHAPE = {
    key: value for key, value in _NO_HEAD_DIM.items() if key not in ("num_key_value_heads", "intermediate_size")
}
# Only in the matrix of families (test_families.py); the last two do no attention that can be recorded.
MORE_STUDENT_FAMILIES: dict[str, dict] = {
    "qwen2": _NO_HEAD_DIM,
    "gemma": _SHAPE,
    "olmo2": _NO_HEAD_DIM,
    "stablelm": _NO_HEAD_DIM,
    "starcoder2": _NO_HEAD_DIM,
    "opt": {**_OLD_SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "falcon": {**_OLD_SHAPE, "new_decoder_architecture": False, "alibi": False},
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 900, "pad_token_id": 3},
}
# Their scores hold position terms, and go through functions of their own.
OWN_ATTENTION = ("mpnet", "deberta", "deberta-v2")
TEACHER_FAMILIES: dict[str, tuple[str, dict]] = {
    "bert": ("wordpiece", {}),
    "roberta": ("roberta", {"max_position_embeddings": 516, "type_vocab_size": 1}),
    "modernbert": ("wordpiece", {"global_attn_every_n_layers": 2, "local_attention": 16}),
    "electra": ("wordpiece", {"embedding_size": 32}),
    "mpnet": ("roberta", {"max_position_embeddings": 516}),
    "deberta-v2": ("wordpiece", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}),
    "deberta": ("wordpiece", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}),
}


def build_student(family: str = "llama", attention: str = "sdpa", seed: int = 0, **changes):
    """A tiny `*ForSequenceClassification` with random weights (larger than usual, so that maps differ)."""
    from transformers import AutoConfig

    known = {**STUDENT_FAMILIES, **MORE_STUDENT_FAMILIES}[family]
    shape = {key: value for key, value in {**known, **changes}.items() if value is not None}
    config = AutoConfig.for_model(family, **{"num_labels": 1, **shape})
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0 if "embed" not in name else 10.0)
    return model


def build_encoder(family: str = "bert", seed: int = 0, attention: str | None = None, **changes):
    """A tiny encoder and its tokenizer."""
    from transformers import AutoConfig

    kind, special = TEACHER_FAMILIES[family]
    tokenizer = tokenizer_of(kind)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "vocab_size": 900,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(family, **{**shape, **special, **changes})
    set_seed(seed)
    if attention is None:
        attention = "eager" if family in OWN_ATTENTION else "sdpa"
    model = AutoModel.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(30.0 if any(part in name for part in ("query", "key", "Wqkv", "in_proj")) else 8.0)
    return model, tokenizer


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The weights of a safetensors file, read whole: one that is mapped must not be written over."""
    return load(Path(path).read_bytes())
