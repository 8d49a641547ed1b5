"""Entry points of `strategy="rain"` and of an exported `custom_generate` folder.

transformers does not pass `tokenizer` and `streamer` to a callable `custom_generate`. So the decoder gets both here,
and stop strings become a stopping criterion.
"""

from __future__ import annotations

import copy
import inspect
from types import SimpleNamespace
from typing import Any

import torch
from transformers.generation import GenerationMixin, StoppingCriteriaList, StopStringCriteria

from ..config import RainConfig
from .checks import check_cache_settings, check_is_whole, check_model, check_tokenizer
from .decoder import RainDecoder
from .generation_options import refuse_options
from .inputs import strip_padding
from .streaming import ended_on_error

_RAIN_ARGUMENTS = ("rain_config", "rain_scorer", "rain_embedder")


def generate_rain(original, model, args: tuple, kwargs: dict[str, Any]):
    """Run a search with the inputs prepared by transformers.

    Args:
        original: transformers' `generate`, not bound to a model.
        model: the model.
        args: positional arguments of `generate`.
        kwargs: keyword arguments of `generate`. RAIN adds `tokenizer`, `rain_config` (a `RainConfig`, the name of a
            preset, or a dict), `rain_scorer`, `rain_embedder` and `rain_prompts`.
    """
    kwargs = arguments_by_name(args, kwargs)
    own_streamer = getattr(kwargs.get("custom_generate"), "streamer", None)
    with ended_on_error(kwargs["streamer"] if kwargs.get("streamer") is not None else own_streamer):
        return _generate(original, model, kwargs)


def _generate(original, model, kwargs: dict[str, Any]):
    strategy = kwargs.pop("strategy", None)
    tokenizer = kwargs.pop("tokenizer", None)
    decoder = _decoder(kwargs, tokenizer, strategy)
    _check_call(model, kwargs, decoder)
    decoder = decoder.for_call(model, dict(kwargs), kwargs.get("streamer"))
    strings, settings = _stop_strings(model, kwargs)
    if not strings:
        return original(model, **kwargs, custom_generate=decoder)
    criterion = StopStringCriteria(decoder.tokenizer, strings)
    kwargs["stopping_criteria"] = StoppingCriteriaList([*(kwargs.get("stopping_criteria") or ()), criterion])
    kwargs["generation_config"] = settings
    return original(without_stop_strings(model), **kwargs, custom_generate=decoder)


def without_stop_strings(model):
    """A model whose generation config has no stop strings, for which `generate` would want the tokenizer.

    It is the model itself, or a shallow copy with a config of its own: other threads may be using the model.
    """
    if model.generation_config.stop_strings is None:
        return model
    stand_in = copy.copy(model)
    stand_in.generation_config = copy.deepcopy(model.generation_config)
    stand_in.generation_config.stop_strings = None
    return stand_in


def arguments_by_name(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of `generate` by name."""
    generate = inspect.unwrap(GenerationMixin.generate)
    bound = inspect.signature(generate).bind(None, *args, **kwargs).arguments
    named = {name: value for name, value in bound.items() if name not in ("self", "kwargs")}
    return {**named, **bound.get("kwargs", {})}


def _decoder(kwargs: dict[str, Any], tokenizer, strategy: str | None) -> RainDecoder:
    """The decoder in `custom_generate`, or a new one from the `rain_` arguments; removes both from `kwargs`."""
    decoder = kwargs.pop("custom_generate", None)
    rain_arguments = {name: kwargs.pop(name) for name in _RAIN_ARGUMENTS if name in kwargs}
    if decoder is None:
        scorer = rain_arguments.get("rain_scorer")
        return RainDecoder(
            tokenizer,
            RainConfig.resolve(rain_arguments.get("rain_config"), strategy),
            "self" if scorer is None else scorer,
            embedder=rain_arguments.get("rain_embedder"),
        )
    if not isinstance(decoder, RainDecoder):
        raise ValueError(
            f"`custom_generate` is {decoder!r} and `strategy` is {strategy!r}, but only one of them can decode. Leave "
            "one out."
        )
    if rain_arguments:
        raise ValueError(
            f"{', '.join(rain_arguments)} was passed with a RainDecoder, which has its own settings. Set them in one "
            "place."
        )
    RainConfig.resolve(decoder.config, strategy)
    return decoder


def _check_call(model, kwargs: dict[str, Any], decoder: RainDecoder) -> None:
    """Checks that must run before transformers prepares the inputs."""
    check_model(model)
    check_tokenizer(model, decoder.tokenizer)
    # generate builds the cache (or switches to continuous batching) before it calls the decoder.
    kind = kwargs.get("cache_implementation")
    if kind is None:
        kind = getattr(kwargs.get("generation_config") or model.generation_config, "cache_implementation", None)
    if kind != "hybrid":  # in old model configs; generate ignores it
        check_cache_settings(SimpleNamespace(cache_implementation=kind))
    refuse_options(kwargs, kwargs.get("generation_config"), model.generation_config)
    check_is_whole(model)
    ids = kwargs.get("inputs") if kwargs.get("inputs") is not None else kwargs.get("input_ids")
    if isinstance(ids, torch.Tensor) and ids.dim() == 2 and not (ids.is_floating_point() and ids.numel()):
        mask = kwargs.get("attention_mask")
        strip_padding(ids, mask if mask is not None and mask.shape == ids.shape else None)


def _stop_strings(model, kwargs: dict[str, Any]) -> tuple[list[str], Any]:
    """Stop strings from the call, its config or the model's config, and the generation config without them."""
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


def generate_custom(model, config: dict[str, Any], args: tuple, kwargs: dict[str, Any]):
    """The `generate` of an exported `custom_generate/generate.py`.

    Args:
        model: the model.
        config: the settings in the exported file; `rain_config` in `kwargs` replaces them.
        args: positional arguments of `generate`.
        kwargs: all others, as transformers passes them (unset ones are `None`).
    """
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    given = kwargs.setdefault("rain_config", config)
    if hasattr(given, "to_dict"):  # a `RainConfig` of hf_interdistill, which is another class than the exported one
        kwargs["rain_config"] = given.to_dict()
    # The generate of the class: on a model loaded with custom code, `model.generate` is this function.
    generate = type(model).generate
    return generate_rain(getattr(generate, "_rain_wrapped", generate), model, args, kwargs)
