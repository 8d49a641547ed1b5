"""Checks of what users pass to `generate`: models, settings, inputs and tokenizers that RAIN cannot use."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.generation import GenerationConfig
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_managed_module

from ..config import RainConfig
from .generation_options import refuse_options

logger = logging.getLogger(__name__)

# Inputs that control a plain decoding loop. They do not affect the search.
_WITHOUT_EFFECT = ("attention_mask", "cache_position", "use_cache", "logits_to_keep")
# Arguments of PEFT with a value for each row of a batch.
_ARGUMENTS_BY_ROW = {
    "adapter_names": "Choose one adapter with `model.set_adapter(name)`, and leave it out",
    "alora_offsets": "Use plain LoRA, without `alora_invocation_tokens`",
}
_SPARE_VOCABULARY = 0.1  # share of the vocabulary that the tokenizer may leave unused


def check_model(model, generation_config=None) -> None:
    """Raise `ValueError` for a model or a generation config that RAIN cannot use."""
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder, but RAIN searches over the tokens of a causal language "
            "model. Use a decoder-only model."
        )
    _refuse_adapters_of_inputs(model)
    if generation_config is None:
        return
    check_cache_settings(generation_config)
    refuse_options(generation_config)


def _refuse_adapters_of_inputs(model) -> None:
    """Raise `ValueError` for PEFT adapters that change the inputs of a forward pass instead of the weights."""
    # `PeftModel.generate` calls that of its base model, and lends it `prepare_inputs_for_generation`.
    lender = getattr(getattr(model, "prepare_inputs_for_generation", None), "__self__", None)
    for each in (model, lender):
        config = getattr(each, "active_peft_config", None)
        kind = getattr(getattr(config, "peft_type", None), "value", None)
        if getattr(config, "is_prompt_learning", False):
            raise ValueError(
                f"The model has a {kind} adapter of PEFT, whose virtual tokens stand before the prompt, but RAIN's "
                "cache has no place for them. Use an adapter that changes weights, such as LoRA, or decode without "
                "RAIN."
            )
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    for name, fix in _ARGUMENTS_BY_ROW.items():
        if any(name in getattr(hook, "keywords", ()) for hook in hooks):  # while `PeftModel.generate` runs
            raise ValueError(
                f"PEFT applies adapters by row of the batch (`{name}`), but the rows of RAIN are branches of texts. "
                f"{fix}, or decode without RAIN."
            )


def check_embedder(config: RainConfig, embedder) -> None:
    """Raise `ValueError` for an encoder of texts where the strategy embeds none."""
    if embedder is not None and config.strategy != "rain":
        raise ValueError(
            f"`embedder` is {embedder!r:.80}, but the strategy {config.strategy!r} embeds no texts. Leave it out, or "
            "use the strategy 'rain'."
        )


def check_is_whole(model) -> None:
    """Raise `ValueError` for a model whose weights are sharded over processes, as by FSDP or ZeRO-3."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    if torch.distributed.get_world_size() > 1 and (is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model)):
        raise ValueError(
            f"The weights of {type(model).__name__} are sharded over {torch.distributed.get_world_size()} processes, "
            "but searches make different numbers of forward passes, so the processes would wait for one another "
            "forever. Load the whole model in each process."
        )


def check_cache_settings(settings) -> None:
    """Raise `ValueError` for a cache that RAIN cannot use.

    Args:
        settings: an object with `cache_implementation`, such as a generation config.
    """
    kind = getattr(settings, "cache_implementation", None)
    if kind in ("static", "offloaded_static", "sliding_window", "hybrid", "hybrid_chunked"):
        raise ValueError(
            f"`cache_implementation` is {kind!r}, but a cache of fixed shape cannot hold a growing tree. Leave it "
            "out: RAIN caches each token of the tree once."
        )
    if kind in ("offloaded", "quantized"):
        raise ValueError(
            f"`cache_implementation` is {kind!r}, but RAIN's cache is on the model's device and in the model's dtype. "
            "Leave it out; to save memory, lower `max_batch_size` or `candidates` in the RainConfig."
        )
    if kind not in (None, "dynamic"):
        raise ValueError(
            f"`cache_implementation` is {kind!r}, but RAIN uses its own tree cache. Leave it out, or decode without "
            "RAIN."
        )


def warn_of_use_cache(settings) -> None:
    """Warn that `use_cache=False` in a generation config has no effect. Call it once a call or job."""
    if getattr(settings, "use_cache", None) is False:
        logger.warning(
            "`use_cache=False` has no effect on RAIN: it always caches the keys and values of its tree. The cache "
            "changes memory and time, not the tokens. Leave it out."
        )


def check_inputs(
    model, input_ids: torch.Tensor, model_kwargs: dict[str, Any], user_arguments: dict[str, Any] | None
) -> None:
    """Raise `ValueError` for model inputs from the user that the search would ignore (images, a cache, ...).

    Only what the user passed is checked, because the inputs that `generate` adds differ by version and model.

    Args:
        model: the model. input_ids: `(rows, length)`.
        model_kwargs: model inputs as prepared by `generate`.
        user_arguments: what the user passed to `generate`; `None` if unknown. In that case, a call of `generate` with
            only ids and a mask shows which inputs it adds.
    """
    kwargs = {name: value for name, value in model_kwargs.items() if not _is_empty(value)}
    if user_arguments is None:
        added = set(kwargs) if kwargs.keys() <= {*_WITHOUT_EFFECT} else _inputs_added_by_generate(model, input_ids)
        user_arguments = {name: value for name, value in kwargs.items() if name not in added}
    for name, value in kwargs.items():
        # generate renames some inputs, so values are compared too.
        is_from_user = name in user_arguments or any(value is each for each in user_arguments.values())
        # Positions and filled caches are always checked; those that generate makes are counted and empty.
        is_from_user |= name == "position_ids" or is_filled_cache(value)
        if name in _WITHOUT_EFFECT or not is_from_user or _is_redundant(name, kwargs):
            continue
        name = next((each for each, given in user_arguments.items() if given is value), name)
        if isinstance(value, Cache):
            raise ValueError(
                f"`{name}` was passed, but RAIN uses its own tree cache and would ignore it. Leave it out, and pass "
                "the whole prompt as `input_ids`."
            )
        raise ValueError(
            f"`{name}` was passed to the model, but RAIN reads token ids only. Leave it out, or decode without RAIN."
        )


def _is_empty(value) -> bool:
    """Whether a value is `None` or empty (image processors return empty tensors for plain text)."""
    if isinstance(value, torch.Tensor):
        return value.numel() == 0
    return value is None or (isinstance(value, list | tuple | dict | set) and not value)


def is_filled_cache(value) -> bool:
    """Whether a value is a cache that holds keys and values."""
    return isinstance(value, Cache) and any(getattr(layer, "is_initialized", False) for layer in value.layers)


def _is_redundant(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether an input follows from ids and mask: counted positions, or token types that are all 0."""
    value, mask = kwargs[name], kwargs.get("attention_mask")
    if name == "token_type_ids":
        return not bool(torch.as_tensor(value).any())
    if name != "position_ids":
        return False
    counted = torch.arange(value.shape[-1], device=value.device) if mask is None else mask.cumsum(dim=-1) - 1
    return bool(((value == counted) | (False if mask is None else mask == 0)).all())


def _inputs_added_by_generate(model, input_ids: torch.Tensor) -> set[str]:
    """Names of the model inputs that `generate` adds, in this version and for this model."""
    ids = input_ids[:1]
    added: set[str] = set()

    def record(model, input_ids, **kwargs):
        added.update(kwargs)
        return input_ids

    settings = GenerationConfig(max_new_tokens=1, pad_token_id=0)
    model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings, custom_generate=record)
    return added


def check_tokenizer(model, tokenizer) -> None:
    """Raise `ValueError` if there is no tokenizer, or if its vocabulary is not the model's."""
    if tokenizer is None:
        raise ValueError(
            "RAIN scores text, so it needs the model's tokenizer. Pass `tokenizer=` to `generate` (with "
            '`strategy="rain"`) or to `RainDecoder`; with a pipeline, `pipe(text, strategy="rain", '
            "tokenizer=pipe.tokenizer)`."
        )
    vocabulary = model.get_input_embeddings().weight.shape[0]
    size = len(tokenizer)
    if size > vocabulary or vocabulary - size > max(256, _SPARE_VOCABULARY * vocabulary):
        raise ValueError(
            f"The tokenizer has {size} tokens and the model {vocabulary}, so the tokenizer is not this model's. "
            "Pass the tokenizer that the model was trained with."
        )
