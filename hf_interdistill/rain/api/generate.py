"""The way in for `strategy="rain"` and for an exported `custom_generate` folder.

For a callable `custom_generate`, transformers drops `tokenizer` and `streamer` before calling it. They are caught
here: the decoder gets both, and stop strings become a stopping criterion.
"""

from __future__ import annotations

import copy
import functools
import inspect
from types import SimpleNamespace
from typing import Any

from transformers.generation import GenerationMixin, StoppingCriteriaList, StopStringCriteria

from .decoder import RainDecoder
from .inputs import check_cache_settings, check_model, check_tokenizer, strip_padding

_OWN = ("rain_config", "rain_scorer", "rain_embedder")


def generate_rain(original, model, args: tuple, kwargs: dict[str, Any]):
    """Run RAIN through transformers' own preparation of inputs.

    Args:
        original: transformers' `generate`, bound to the model.
        model: the model.
        args: positional arguments of `generate`.
        kwargs: the others; `tokenizer`, `rain_config` (a `RainConfig`, a preset's name or a dict), `rain_scorer`,
            `rain_embedder` and `rain_prompts` are RAIN's.
    """
    kwargs = arguments_by_name(args, kwargs)
    kwargs.pop("strategy", None)
    tokenizer = kwargs.pop("tokenizer", None)
    decoder = _decoder(kwargs, tokenizer)
    _check(model, kwargs, decoder)
    decoder = decoder.for_call(dict(kwargs), kwargs.get("streamer"))
    strings, settings = _stop_strings(model, kwargs)
    if not strings:
        return original(**kwargs, custom_generate=decoder)
    criterion = StopStringCriteria(decoder.tokenizer, strings)
    kwargs["stopping_criteria"] = StoppingCriteriaList([*(kwargs.get("stopping_criteria") or ()), criterion])
    kwargs["generation_config"] = settings
    own = model.generation_config
    if own.stop_strings is None:
        return original(**kwargs, custom_generate=decoder)
    # generate fills gaps from the model's own config, and would ask for the tokenizer that it has dropped.
    model.generation_config = copy.deepcopy(own)
    model.generation_config.stop_strings = None
    try:
        return original(**kwargs, custom_generate=decoder)
    finally:
        model.generation_config = own


def arguments_by_name(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `generate` by name."""
    generate = inspect.unwrap(GenerationMixin.generate)
    bound = inspect.signature(generate).bind(None, *args, **kwargs).arguments
    named = {name: value for name, value in bound.items() if name not in ("self", "kwargs")}
    return {**named, **bound.get("kwargs", {})}


def _decoder(kwargs: dict[str, Any], tokenizer) -> RainDecoder:
    """The decoder that was passed, or one from `tokenizer` and the `rain_` arguments (which are taken out)."""
    given = kwargs.pop("custom_generate", None)
    own = {name: kwargs.pop(name) for name in _OWN if name in kwargs}
    if given is None:
        scorer = own.get("rain_scorer")
        return RainDecoder(
            tokenizer,
            own.get("rain_config"),
            "self" if scorer is None else scorer,
            embedder=own.get("rain_embedder"),
        )
    if not isinstance(given, RainDecoder):
        raise ValueError(
            f"`custom_generate` is {given!r} beside `strategy='rain'`, but only one of them can decode. Leave one out."
        )
    if own:
        raise ValueError(
            f"{', '.join(own)} came beside a RainDecoder, which has settings of its own. Set them in one place."
        )
    return given


def _check(model, kwargs: dict[str, Any], decoder: RainDecoder) -> None:
    """What is better said before transformers prepares anything."""
    check_model(model)
    check_tokenizer(model, decoder.tokenizer)
    # Said here too, for generate builds such a cache (or leaves for continuous batching) before it calls the decoder.
    asked = kwargs.get("cache_implementation")
    if asked is None:
        asked = getattr(kwargs.get("generation_config") or model.generation_config, "cache_implementation", None)
    if asked != "hybrid":  # in old configs of models; generate takes it for None
        check_cache_settings(SimpleNamespace(cache_implementation=asked))
    for name in ("assistant_model", "synced_gpus", "negative_prompt_ids"):
        if kwargs.get(name) is not None and kwargs[name] is not False:
            raise ValueError(f"`{name}` was passed, but RAIN has no use for it. Leave it out.")
    ids = kwargs.get("inputs") if kwargs.get("inputs") is not None else kwargs.get("input_ids")
    if ids is not None and hasattr(ids, "dim") and ids.dim() == 2 and not ids.is_floating_point():
        mask = kwargs.get("attention_mask")
        strip_padding(ids, mask if mask is not None and mask.shape == ids.shape else None)


def _stop_strings(model, kwargs: dict[str, Any]) -> tuple[list[str], Any]:
    """Stop strings from wherever generate takes them, and the generation config without them."""
    config = kwargs.get("generation_config")
    strings = kwargs.pop("stop_strings", None)
    for source in (config, model.generation_config):
        strings = strings if strings is not None or source is None else source.stop_strings
    if strings is None:
        return [], config
    if config is not None:
        config = copy.deepcopy(config)
        config.stop_strings = None
    return [strings] if isinstance(strings, str) else list(strings), config


def generate_custom(model, config: dict[str, Any], kwargs: dict[str, Any]):
    """The `generate` of an exported `custom_generate/generate.py`.

    Args:
        model: the model.
        config: the settings written into the file; `rain_config` in `kwargs` replaces them.
        kwargs: all arguments of `generate`, as transformers hands them on (unset ones are `None`).
    """
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    kwargs.setdefault("rain_config", config)
    # The class's generate, for a model loaded with custom code has this function as its own.
    generate = type(model).generate
    original = functools.partial(getattr(generate, "_rain_wrapped", generate), model)
    return generate_rain(original, model, (), kwargs)
