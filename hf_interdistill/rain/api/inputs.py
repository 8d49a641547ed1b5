"""From what `generate` prepares to prompts for the engine, and the checks that belong there."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.generation import EosTokenCriteria, GenerationConfig, MaxLengthCriteria

from ..engine.engine import Prompt
from ..engine.stopping import StopConditions

logger = logging.getLogger(__name__)

# Settings of generate that RAIN has nothing to give for.
_UNAVAILABLE = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
# Processors that count from the padded start of a row; they are moved to the prompt's own.
_LENGTH_FIELDS = ("prompt_length_to_skip", "min_length", "max_length", "begin_index")
_IGNORED_FIELD = "prompt_ignore_length"  # a tensor holds each row's padding, of which nothing is left here
# Inputs that say how a plain loop would run; the search has its own ways.
_WITHOUT_EFFECT = ("attention_mask", "cache_position", "use_cache", "logits_to_keep")
_SPARE_VOCABULARY = 0.1


def check_model(model, generation_config=None) -> None:
    """Raise `ValueError` for a model or a generation config that RAIN cannot serve."""
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder, but RAIN searches over the tokens of a causal language "
            "model. Use a decoder-only model."
        )
    if generation_config is None:
        return
    check_cache_settings(generation_config)
    if (generation_config.num_beams or 1) > 1:
        raise ValueError(
            f"`num_beams` is {generation_config.num_beams}, but RAIN is a search of its own: use `num_beams=1`, and "
            "`num_return_sequences` for several answers."
        )
    if generation_config.guidance_scale not in (None, 1, 1.0):
        raise ValueError(
            f"`guidance_scale` is {generation_config.guidance_scale}, but classifier-free guidance keeps a cache of "
            "one text, and RAIN follows many. Set it to 1."
        )
    for name in _UNAVAILABLE:
        if getattr(generation_config, name, False):
            raise ValueError(
                f"`{name}=True`: RAIN reads many token sets for each one it commits, so there is no such output. "
                "Leave it out; visits, values and priors are in `out.rain[i].tree`."
            )


def check_cache_settings(settings) -> None:
    """Raise `ValueError` for a cache that RAIN cannot use; warn that `use_cache=False` changes nothing.

    Args:
        settings: anything with `cache_implementation` and `use_cache`, such as a generation config.
    """
    kind = getattr(settings, "cache_implementation", None)
    if kind in ("static", "offloaded_static", "sliding_window", "hybrid", "hybrid_chunked"):
        raise ValueError(
            f"`cache_implementation` is {kind!r}, but keys and values of a fixed shape cannot hold a tree that grows. "
            "Leave it out: RAIN keeps each token of the tree once."
        )
    if kind in ("offloaded", "quantized"):
        raise ValueError(
            f"`cache_implementation` is {kind!r}, but RAIN's tree stays on the model's device in the model's dtype. "
            "Leave it out; to save memory, lower `max_batch_size` or `candidates` in the RainConfig."
        )
    if kind not in (None, "dynamic"):
        raise ValueError(
            f"`cache_implementation` is {kind!r}, but RAIN has a cache of its own, a tree. Leave it out, or decode "
            "plainly."
        )
    if getattr(settings, "use_cache", None) is False:
        logger.warning(
            "`use_cache=False` has no effect on RAIN: it keeps the keys and values of its tree, which changes memory "
            "and time and not the tokens. Leave it out."
        )


def check_inputs(model, input_ids: torch.Tensor, model_kwargs: dict[str, Any], given: dict[str, Any] | None) -> None:
    """Raise `ValueError` for model inputs of the user's that the search would not pass on (images, a cache, ...).

    What `generate` adds by itself differs by version and model, so no list of such names is kept: only what the user
    gave is looked at.

    Args:
        model: the model. input_ids: `(rows, length)`.
        model_kwargs: model inputs as prepared by `generate`.
        given: what the user passed to `generate`; `None` if nobody knows. Then `generate` is asked what it adds to a
            call that has nothing but ids and a mask.
    """
    kwargs = {name: value for name, value in model_kwargs.items() if not _is_empty(value)}
    if given is None:
        added = set(kwargs) if kwargs.keys() <= {*_WITHOUT_EFFECT} else _inputs_added_by_generate(model, input_ids)
        given = {name: value for name, value in kwargs.items() if name not in added}
    for name, value in kwargs.items():
        is_given = name in given or any(value is each for each in given.values())  # generate renames some
        is_given |= name == "position_ids" or _is_filled_cache(value)  # generate's own are counted, and empty
        if name in _WITHOUT_EFFECT or not is_given or _says_nothing_new(name, kwargs):
            continue
        if isinstance(value, Cache):
            raise ValueError(
                f"`{name}` was passed, but RAIN keeps keys and values of its own, those of a tree, and would not use "
                "it. Leave it out, and pass the whole prompt as `input_ids`."
            )
        raise ValueError(
            f"`{name}` was passed to the model, but RAIN reads token ids only. Leave it out, or decode plainly."
        )


def _is_empty(value) -> bool:
    """Nothing, or a container or tensor with nothing in it (what processors of images give for a text)."""
    if isinstance(value, torch.Tensor):
        return value.numel() == 0
    return value is None or (isinstance(value, list | tuple | dict | set) and not value)


def _is_filled_cache(value) -> bool:
    return isinstance(value, Cache) and any(getattr(layer, "is_initialized", False) for layer in value.layers)


def _says_nothing_new(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether an input holds what follows from ids and mask anyway: counted positions, types that are all 0."""
    value, mask = kwargs[name], kwargs.get("attention_mask")
    if name == "token_type_ids":
        return not bool(torch.as_tensor(value).any())
    if name != "position_ids":
        return False
    counted = torch.arange(value.shape[-1], device=value.device) if mask is None else mask.cumsum(dim=-1) - 1
    return bool(((value == counted) | (False if mask is None else mask == 0)).all())


def _inputs_added_by_generate(model, input_ids: torch.Tensor) -> set[str]:
    """Names of model inputs that `generate` adds by itself, in this version and for this model."""
    ids, added = input_ids[:1], set()

    def note(model, input_ids, **kwargs):
        added.update(kwargs)
        return input_ids

    settings = GenerationConfig(max_new_tokens=1, pad_token_id=0)
    model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings, custom_generate=note)
    return added


def check_tokenizer(model, tokenizer) -> None:
    """Raise `ValueError` without a tokenizer, or for one of another vocabulary."""
    if tokenizer is None:
        raise ValueError(
            "RAIN judges text, so it needs the model's tokenizer: pass `tokenizer=` (to `generate` with "
            '`strategy="rain"`, or to `RainDecoder`).'
        )
    vocabulary = model.get_input_embeddings().weight.shape[0]
    size = len(tokenizer)
    if size > vocabulary or vocabulary - size > max(256, _SPARE_VOCABULARY * vocabulary):
        raise ValueError(
            f"The tokenizer has {size} tokens and the model {vocabulary}, so the tokenizer is not this model's. "
            "Pass the tokenizer that the model was trained with."
        )


def strip_padding(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[tuple[int, ...]]:
    """Token ids of each row `(batch, length)` without its left padding.

    Raises:
        ValueError: padding on the right or inside, or an empty prompt.
    """
    rows = []
    for number, ids in enumerate(input_ids.tolist()):
        if attention_mask is not None:
            mask = attention_mask[number].bool().tolist()
            start = mask.index(True) if any(mask) else len(mask)
            if not all(mask[start:]):
                raise ValueError(
                    f"The attention mask of prompt {number} has padding on the right or inside, but a prompt must end "
                    "its row. Set `tokenizer.padding_side = 'left'`."
                )
            ids = ids[start:]
        if not ids:
            raise ValueError(
                f"Prompt {number} is empty, but RAIN needs at least one token to go on from. Give it some text, or "
                "the BOS token."
            )
        rows.append(tuple(ids))
    return rows


def new_token_limit(model, length: int, allowed: int) -> tuple[int, str]:
    """New tokens that a prompt may get, and what limits them: `length` or the model's `context`.

    Raises:
        ValueError: none is allowed, or the prompt fills the context.
    """
    if allowed < 1:
        raise ValueError(
            f"The prompt may get {allowed} new tokens (`max_new_tokens` or `max_length`), but RAIN has to write at "
            "least one. Raise the limit."
        )
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return allowed, "length"
    if length >= context:
        raise ValueError(
            f"The prompt has {length} tokens, but the model's context is {context}, which leaves no room to write. "
            "Shorten the prompt."
        )
    return (allowed, "length") if allowed <= context - length else (context - length, "context")


def prepare_plainly(model, generation_config, input_ids: torch.Tensor, new_tokens: int | None) -> tuple[Any, list]:
    """What `generate` prepares, for callers that are outside of it: the full config and its logits processors.

    Args:
        model: the model. generation_config: as for `generate`; the model's own fills the gaps.
        input_ids: `(batch, length)`.
        new_tokens: new tokens allowed; `None` takes the config's `max_new_tokens`, else what the context allows.
    """
    settings, _ = model._prepare_generation_config(generation_config)
    check_model(model, settings)
    model._prepare_special_tokens(settings, True, device=input_ids.device, batch_size=len(input_ids))
    length = input_ids.shape[1]
    if new_tokens is None:
        new_tokens = settings.max_new_tokens
    if new_tokens is None:
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if context is None:
            raise ValueError(
                "Nobody says how long the text may get: there is neither `max_new_tokens` nor a context length in the "
                "model's config. Pass `max_new_tokens`."
            )
        new_tokens = context
    settings.max_length = length + new_tokens
    if settings.min_new_tokens is not None:
        settings.min_length = length + settings.min_new_tokens
    processors = model._get_logits_processor(
        generation_config=settings,
        input_ids_seq_length=length,
        encoder_input_ids=input_ids,
        device=input_ids.device,
        model_kwargs={},
    )
    return settings, list(processors)


def build_prompts(model, input_ids, attention_mask, settings: dict[str, Any]) -> list[Prompt]:
    """Prompts of a padded batch.

    Args:
        model: the model. input_ids, attention_mask: `(batch, length)`.
        settings: `generation_config`, `processors`, `criteria`, `shown` (what scorers see, one a row).
    """
    config = settings["generation_config"]
    eos = config.eos_token_id
    eos_ids = frozenset([eos] if isinstance(eos, int) else eos or [])
    criteria = tuple(
        criterion
        for criterion in settings["criteria"] or ()
        if not isinstance(criterion, EosTokenCriteria | MaxLengthCriteria)
    )
    prompts = []
    for ids, shown in zip(strip_padding(input_ids, attention_mask), settings["shown"], strict=True):
        padding = input_ids.shape[1] - len(ids)
        limit, name = new_token_limit(model, len(ids), config.max_length - input_ids.shape[1])
        processors = tuple(_moved(processor, padding) for processor in settings["processors"] or ())
        prompts.append(Prompt(ids, shown, StopConditions(limit, eos_ids, criteria, processors, name)))
    return prompts


def _moved(processor, padding: int):
    """A processor that counts from the prompt's first token rather than from its row's."""
    changes = {
        name: getattr(processor, name) - padding
        for name in _LENGTH_FIELDS
        if isinstance(getattr(processor, name, None), int)
    }
    if isinstance(getattr(processor, _IGNORED_FIELD, None), torch.Tensor):
        changes[_IGNORED_FIELD] = None
    if not changes:
        return processor
    moved = copy.copy(processor)
    for name, value in changes.items():
        setattr(moved, name, value)
    return moved


def shown_prompts(tokenizer, rows: Sequence[Sequence[int]], given: Sequence[Any] | None, copies: int) -> list[Any]:
    """What scorers see of each row: the user's own prompts (text or messages), else the decoded tokens.

    Args:
        tokenizer: the model's. rows: token ids without padding. given: the user's prompts, or `None`.
        copies: rows made of each prompt (`num_return_sequences`).
    """
    if given is None:
        return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    given = list(given)
    if len(given) * copies != len(rows):
        raise ValueError(
            f"`rain_prompts` has {len(given)} prompts, but there are {len(rows) // copies} in `input_ids`. Give one a "
            "row."
        )
    return [prompt for prompt in given for _ in range(copies)]
