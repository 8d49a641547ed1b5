"""Tokenizers of each kind, trained on the demo's preferences."""

from __future__ import annotations

import copy
import re
from collections import Counter

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from support.datasets import corpus

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


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
