"""Generation options of a served model: what is sent to the server, what ends a text, and what is refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import GenerationConfig
from transformers.generation import StopStringCriteria

from ...scoring.formatting import template_kwargs
from ...scoring.prompts import tokenize_prompt
from ...utils.fields import refuse_unknown
from ...utils.json_lines import refuse_half_characters
from ..engine.engine import Prompt
from ..engine.stopping import StopConditions
from ..server.sampling import ServedSampling
from .generation_options import REFUSED, WITHOUT_EFFECT

logger = logging.getLogger(__name__)

_SENT = (
    *("do_sample", "temperature", "top_k", "top_p", "repetition_penalty"),
    *("eos_token_id", "stop_strings", "max_new_tokens", "max_length", "max_time"),
)
_WARPERS = ("min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")  # they apply with `do_sample` alone
# They fill batches, choose caches or form outputs, none of which is there.
_UNUSED = (
    *("pad_token_id", "bos_token_id", "use_cache", "cache_implementation", "return_dict_in_generate"),
    *("renormalize_logits", "remove_invalid_values"),
)
# `None` leaves these to the model's generation config, and resets all others to transformers' defaults.
_LENGTHS_AND_ENDS = ("eos_token_id", "stop_strings", "max_new_tokens", "max_length", "max_time")
_DEFAULTS = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class ServedGeneration:
    """Generation options, resolved.

    Args:
        sampling: what shapes candidates and rollouts.
        eos_token_ids, stop_strings: what ends a text.
        max_new_tokens, max_length: limits; `max_length` counts the prompt.
        max_time: seconds for a call.
    """

    sampling: ServedSampling
    eos_token_ids: frozenset[int]
    stop_strings: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    max_length: int | None = None
    max_time: float | None = None

    @classmethod
    def resolve(
        cls, generation: Mapping[str, Any] | GenerationConfig | None, own: GenerationConfig | None, tokenizer
    ) -> ServedGeneration:
        """Options of a call, with those of the model where it has none, and with transformers' defaults.

        Args:
            generation: the options of a call; in a mapping `None` overrides what the model's own config says, except
                for lengths and ends. own: the generation config of the model, if it is known.
            tokenizer: its EOS token ends texts if neither of them has one.

        Raises:
            UnknownFieldError: no such option. ValueError: an option that cannot be sent, by name.
        """
        given = _plain(generation)
        known = [name for name in vars(GenerationConfig()) if not name.startswith("_")]
        refuse_unknown("`generation`", given, known)
        nones = (
            {name for name, value in generation.items() if value is None} if isinstance(generation, Mapping) else set()
        )
        reset = nones.difference(_LENGTHS_AND_ENDS)
        inherited = {name: value for name, value in _plain(own).items() if name not in given and name not in reset}
        settings = {**inherited, **given}
        if "max_length" in given:
            settings.pop("max_new_tokens", None) if "max_new_tokens" not in given else None
        settings = {**_DEFAULTS, **settings}
        _refuse_unsendable(settings, frozenset(inherited))
        sampling = ServedSampling(
            repetition_penalty=float(settings["repetition_penalty"]), inherited=frozenset(inherited)
        )
        if settings["do_sample"]:
            sampling = replace(
                sampling,
                temperature=float(settings["temperature"]),
                top_k=settings["top_k"] or None,
                top_p=float(settings["top_p"]),
            )
        ends = settings.get("eos_token_id", tokenizer.eos_token_id)
        strings = settings.get("stop_strings") or ()
        return cls(
            sampling,
            frozenset([ends] if isinstance(ends, int) else ends or ()),
            (strings,) if isinstance(strings, str) else tuple(strings),
            settings.get("max_new_tokens"),
            settings.get("max_length"),
            settings.get("max_time"),
        )

    def prompt_builder(self, tokenizer, context: int | None) -> Callable[..., Prompt]:
        """A function that makes the prompts of a call or job to search from: `build(prompt, columns)`.

        A prompt is a text, or messages, which get the chat template with the columns of their row (`tools`,
        `chat_template_kwargs`). It raises `ValueError` for an empty prompt, one that leaves no room for new tokens, or
        no limit of their number.

        Args:
            tokenizer: the model's. context: the most tokens of prompt and text.
        """
        deadline = None if self.max_time is None else time.time() + self.max_time
        criteria = (StopStringCriteria(tokenizer, list(self.stop_strings)),) if self.stop_strings else ()

        def build(shown: Any, columns: Mapping[str, Any] | None = None) -> Prompt:
            refuse_half_characters(shown, "`prompts`")
            ids = tuple(tokenize_prompt(tokenizer, shown, template_kwargs(columns or {}))[0].tolist())
            limit, name = self.limit(len(ids), context)
            stop = StopConditions(limit, self.eos_token_ids, criteria, (), name, deadline)
            return Prompt(ids, shown, stop, columns=columns or {})

        return build

    def limit(self, length: int, context: int | None) -> tuple[int, str]:
        """New tokens that may follow a prompt, and what limits them: `length` or `context`."""
        if not length:
            raise ValueError("The prompt has no tokens, but there must be one to continue. Give it some text.")
        allowed = self.max_new_tokens
        if allowed is None:
            allowed = context if self.max_length is None else self.max_length - length
        if allowed is None:
            raise ValueError("The maximum length is unknown, for the server does not say it. Set `max_new_tokens`.")
        if allowed < 1:
            raise ValueError(
                f"`max_new_tokens` or `max_length` allows {allowed} new tokens, but there must be at least one. Raise "
                "it."
            )
        if context is None or length + allowed <= context:
            return allowed, "length"
        if length >= context:
            raise ValueError(
                f"The prompt has {length} tokens, but the server's `--max-model-len` is {context}, which leaves no "
                "room for new tokens. Shorten the prompt, or raise that limit."
            )
        return context - length, "context"


def _plain(config: Mapping[str, Any] | GenerationConfig | None) -> dict[str, Any]:
    """Options that are set."""
    values = {} if config is None else dict(config) if isinstance(config, Mapping) else vars(config)
    return {name: value for name, value in values.items() if value is not None and not name.startswith("_")}


def _refuse_unsendable(settings: dict[str, Any], inherited: frozenset[str]) -> None:
    filled_in = getattr(GenerationConfig, "_get_default_generation_params", dict)  # earlier versions: by the config
    neutral = {**vars(GenerationConfig()), **filled_in(), "num_return_sequences": 1}
    for name, value in settings.items():
        is_unread = name in _WARPERS and not settings["do_sample"]
        if name in (*_SENT, *_UNUSED, *WITHOUT_EFFECT) or is_unread or not value or value == neutral.get(name):
            continue
        if name in REFUSED and value in REFUSED[name][0]:
            continue
        origin, fix = "", "Leave it out"
        if name in inherited:
            origin, fix = " from the model's generation config,", f"Pass `{name}=None`"
        raise ValueError(
            f"`{name}` is {value!r:.80},{origin} but a server is sent only {', '.join(_SENT)}. {fix}, or load the "
            "model here, without `server`."
        )
    if settings["temperature"] <= 0 or not 0 < settings["top_p"] <= 1 or settings["repetition_penalty"] <= 0:
        raise ValueError(
            f"`temperature` ({settings['temperature']}) and `repetition_penalty` ({settings['repetition_penalty']}) "
            f"must be positive, and `top_p` ({settings['top_p']}) between 0 and 1."
        )


def saved_generation_config(tokenizer) -> GenerationConfig | None:
    """The generation config in the folder or repository of a tokenizer, if there is one."""
    try:
        return GenerationConfig.from_pretrained(tokenizer.name_or_path)
    except (OSError, ValueError):
        logger.info("There is no generation config beside the tokenizer: texts end at the tokenizer's EOS token.")
        return None
