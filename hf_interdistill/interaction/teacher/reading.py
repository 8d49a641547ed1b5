"""How a model reads a row: whether each token sees all others, and whether its attention can be recorded.

A causal language model is made to read both ways: transformers builds other masks where `config.is_causal` is `False`,
and the config keeps that on the disk. What a model does is then probed, layer by layer, and not taken from its name.

Source: LLM2Vec (arXiv 2404.05961) for a decoder with its causal mask lifted; the probe is ours.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import nn
from transformers import PreTrainedModel

from ..attention.interceptor import AttentionInterceptor
from .late_interaction import LATE_INTERACTION_IMPLEMENTATIONS

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 4
_FIX = (
    "Use an encoder (BERT, RoBERTa, MPNet, ModernBERT, ELECTRA, DeBERTa) or another decoder (Llama, Qwen, Mistral, "
    "Gemma, Phi, OPT)."
)


class AttentionProbe(AttentionInterceptor):
    """Context in which each attention call is made twice: for its result, and to see who attends to the last token.

    In the second call the values are 1 at the last token and 0 elsewhere, so its result is the weight of that token.
    No weight is lost in rounding then, however small it is.

    Attributes:
        calls: number of calls of each layer.
        last_token_readers: layers in which an earlier token attends to the last one.
        biased: layers that add position terms to the scores, so that queries and keys alone do not give their map.
    """

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.calls: dict[int, int] = {}
        self.last_token_readers: set[int] = set()
        self.biased: set[int] = set()

    def intercept(self, layer, attend, query, key, value, attention_mask, **kwargs):
        self.calls[layer] = self.calls.get(layer, 0) + 1
        if kwargs.get("position_bias") is not None:
            self.biased.add(layer)
        is_last = torch.zeros_like(value)
        is_last[:, :, -1] = 1
        if attend(query, key, is_last, attention_mask, **kwargs)[0][:, :-1].any():
            self.last_token_readers.add(layer)
        return attend(query, key, value, attention_mask, **kwargs)


def base_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model without a head: what `AutoModel` loads.

    Raises:
        ValueError: an encoder-decoder, a PEFT model, or one that reads more than text.
    """
    name = type(model).__name__
    if is_peft_model(model):
        raise ValueError(
            f"The teacher is a {name} of PEFT, but a teacher is saved as a whole model. Merge the adapter first: "
            "`model.merge_and_unload()`."
        )
    if model.config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder, but a teacher is a single stack of layers. {_FIX}")
    if model.config.get_text_config() is not model.config:
        raise ValueError(
            f"{name} reads images or sound beside text, but a teacher reads text alone. Pass its text part (often "
            "`model.language_model`) with the tokenizer, or use a model of text."
        )
    base: Any = model.base_model  # declared as any module
    return base


def is_decoder(model: PreTrainedModel) -> bool:
    """Whether a model was made as a decoder, with its causal mask or without."""
    is_lifted = getattr(model.config, "is_causal", True) is False
    is_lifted |= getattr(model.config, "use_bidirectional_attention", False) is True
    return is_lifted or any(getattr(module, "is_causal", False) is True for module in model.modules())


def lift_causal_mask(model: PreTrainedModel) -> None:
    """Let each token of a decoder attend to all others, padding excepted. Its config says so, and is saved with it.

    Layers with a sliding window keep it, on both sides of each token. Nothing but the config is changed, so any code
    that loads the saved model reads both ways too.

    Raises:
        ValueError: in some layer tokens still do not see the later ones, or attend to padding. The config is then as
            it was.
    """
    before = {name: getattr(model.config, name) for name in ("is_causal", "use_cache") if hasattr(model.config, name)}
    model.config.is_causal = False
    model.config.use_cache = False  # there is nothing to generate, and keys and values would stay in memory
    whole, padded = _probe(model, has_padding=False), _probe(model, has_padding=True)
    layers = set(range(model.config.num_hidden_layers))
    unseen = sorted(layers - whole.calls.keys())
    causal = sorted((layers & whole.calls.keys()) - whole.last_token_readers)
    found = []
    if unseen:
        found.append(f"layers {unseen} do no softmax attention through transformers' AttentionInterface")
    if causal:
        found.append(
            f"layers {causal} hide later tokens though `config.is_causal` is False (`attn_implementation='eager'`, or "
            "another version of transformers, 5.2 or later, may heed it)"
        )
    if whole.biased:
        found.append(f"layers {sorted(whole.biased)} add position terms to the scores that cannot be recorded")
    if padded.last_token_readers:
        found.append(f"layers {sorted(padded.last_token_readers)} attend to padding")
    if found:
        del model.config.is_causal, model.config.use_cache
        for name, value in before.items():
            setattr(model.config, name, value)
        raise ValueError(
            f"{type(model).__name__} cannot be a teacher: a decoder must read both ways, but {'; '.join(found)}. "
            f"{_FIX}"
        )
    logger.info(f"{type(model).__name__} reads both ways: its causal mask is lifted in all {len(layers)} layers.")


def has_recordable_attention(model: PreTrainedModel) -> bool:
    """Whether queries and keys of all layers can be recorded; else the model is set to eager attention.

    With eager attention a model returns its weights. They are needed where position terms are added to the scores
    (DeBERTa, MPNet), so that queries and keys alone do not give the map, and where layers share their weights.

    Raises:
        ValueError: the model returns no weights either, or does not read both ways.
    """
    count = model.config.num_hidden_layers
    probe = _probe(model, has_padding=False)
    if probe.calls == dict.fromkeys(range(count), 1) and not probe.biased:
        return True
    if model.config._attn_implementation != "eager":
        model.set_attn_implementation("eager")
    weights = getattr(_read(model, has_padding=False, output_attentions=True), "attentions", None) or ()
    square = (_PROBE_TOKENS, _PROBE_TOKENS)
    if len(weights) != count or any(each is None or each.shape[-2:] != square for each in weights):
        raise ValueError(
            f"{type(model).__name__} cannot be a teacher: its attention does not go through transformers' "
            f"AttentionInterface, and it returns no weights `(heads, length, length)` of its {count} layers. {_FIX}"
        )
    blind = [layer for layer, each in enumerate(weights) if not each[:, :, :-1, -1].any()]
    if blind:
        raise ValueError(
            f"{type(model).__name__} cannot be a teacher: in layers {blind} no token sees the later ones, and its "
            f"attention does not go through transformers' AttentionInterface, where that could be changed. {_FIX}"
        )
    return False


def _probe(model: PreTrainedModel, *, has_padding: bool) -> AttentionProbe:
    """Probe a model. One with a GPU kernel may not be on a GPU yet, so it is probed with another implementation."""
    own = model.config._attn_implementation
    if own not in LATE_INTERACTION_IMPLEMENTATIONS:
        model.config._attn_implementation = "sdpa" if model._supports_sdpa else "eager"
    try:
        with AttentionProbe(model) as probe:
            _read(model, has_padding=has_padding)
    finally:
        model.config._attn_implementation = own
    return probe


@torch.no_grad()
def _read(model: PreTrainedModel, *, has_padding: bool, **kwargs):
    """The output for a short row; `has_padding`: its last token is padding."""
    was_training = model.training
    model.eval()
    ids = torch.arange(_PROBE_TOKENS, device=model.device)[None] + 5
    mask = torch.ones_like(ids)
    mask[:, -1] = not has_padding
    output = model(input_ids=ids, attention_mask=mask, return_dict=True, **kwargs)
    model.train(was_training)
    return output
