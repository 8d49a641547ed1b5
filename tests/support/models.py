"""Tiny models and tokenizers, made here: no hub, no GPU."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast, set_seed

ROOT = Path(__file__).resolve().parents[2]
SHARED_DATA = ROOT.parent / "shared" / "data"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def read_rows(split: str = "train") -> list[dict]:
    path = ROOT / "recipes" / "demo" / "preferences" / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def corpus() -> list[str]:
    return [message["content"] for row in read_rows() for part in ("prompt", "chosen") for message in row[part]]


def _bpe(kind: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=None if kind == "bytes" else "<unk>"))
    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    if kind == "bytes":  # GPT-2, Llama 3, Qwen
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:  # Llama 2, Mistral, Gemma
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        alphabet = []
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def _wordpiece() -> Tokenizer:
    """Characters and frequent words; made by hand, since the trainer's choice among equals differs by process."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = Counter(re.findall(r"\w+|[^\w\s]", " ".join(corpus()).lower()))
    characters = sorted({character for word in words for character in word})
    frequent = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    tokens = [*specials, *characters, *(f"##{character}" for character in characters), *frequent][:900]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ids = {token: tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=list(ids.items())
    )
    return tokenizer


def _roberta() -> Tokenizer:
    tokenizer = _bpe("bytes")
    ids = [("</s>", tokenizer.token_to_id("</s>")), ("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = processors.RobertaProcessing(*ids)
    return tokenizer


def build_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """`bytes`, `metaspace` (students), `wordpiece`, `roberta` (teachers)."""
    if kind in ("bytes", "metaspace"):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=_bpe(kind), bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
        )
        tokenizer.chat_template = CHAT_TEMPLATE
        return tokenizer
    if kind == "wordpiece":
        names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
        specials = {f"{name}_token": token for name, token in names.items()}
        names = ["input_ids", "token_type_ids", "attention_mask"]
        return PreTrainedTokenizerFast(tokenizer_object=_wordpiece(), model_input_names=names, **specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=_roberta(), cls_token="<s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


_TOKENIZERS: dict[str, PreTrainedTokenizerFast] = {}


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A copy of a tokenizer that is trained once a session."""
    if kind not in _TOKENIZERS:
        _TOKENIZERS[kind] = build_tokenizer(kind)
    return copy.deepcopy(_TOKENIZERS[kind])


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
TEACHER_FAMILIES: dict[str, tuple[str, dict]] = {
    "bert": ("wordpiece", {}),
    "roberta": ("roberta", {"max_position_embeddings": 516, "type_vocab_size": 1}),
    "modernbert": ("wordpiece", {"global_attn_every_n_layers": 2, "local_attention": 16}),
    "electra": ("wordpiece", {"embedding_size": 32}),
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
        attention = "eager" if family.startswith("deberta") else "sdpa"
    model = AutoModel.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(30.0 if any(part in name for part in ("query", "key", "Wqkv", "in_proj")) else 8.0)
    return model, tokenizer
