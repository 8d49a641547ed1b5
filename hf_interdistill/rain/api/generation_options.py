"""What RAIN does with each argument of `generate` and each field of `GenerationConfig`.

Each name is in one of three tables. `HONORED`: it has the effect that it has in `generate`. `REFUSED`: a value other
than the neutral ones raises `ValueError`. `WITHOUT_EFFECT`: it changes no token of a plain `generate` either, or only
something that RAIN does not do.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

from transformers.generation import GenerationConfig

logger = logging.getLogger(__name__)

_ARGUMENTS = (
    *("inputs", "generation_config", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "streamer"),
    *("custom_generate", "tokenizer", "attention_mask"),
)
# Each row of `num_return_sequences` is a search of its own.
_LENGTHS_AND_ENDS = (
    *("max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time", "stop_strings", "eos_token_id"),
    *("num_return_sequences", "return_dict_in_generate", "pad_token_id", "bos_token_id"),
)
# The warpers among them apply with `do_sample`, as in generate.
_PROCESSORS = (
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
    *("bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens", "renormalize_logits"),
    *("forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty"),
    "watermarking_config",
)
_CACHES = ("cache_implementation", "use_cache")  # see `checks.check_cache_settings`
HONORED = frozenset((*_ARGUMENTS, *_LENGTHS_AND_ENDS, *_PROCESSORS, *_CACHES))

_MANY_SETS = "RAIN decodes many token sets for each one that it commits, so it has no such output"
_OUTPUT_FIX = "Leave it out; visits, values and priors are in `out.rain[i].tree`."
_BEAMS = "RAIN replaces beam search"
_ASSISTED = "RAIN decodes all candidates with the model itself, and drafts none"
_LEAVE_OUT = "Leave it out, or decode without RAIN."
_NEUTRAL = (None, False)

# Name -> values without an effect, the reason, the fix.
REFUSED: dict[str, tuple[tuple, str, str]] = {
    "num_beams": ((None, 1), _BEAMS, "Use `num_beams=1`, and `num_return_sequences` for several answers."),
    "num_beam_groups": ((None, 1), _BEAMS, "Leave it out, and use `num_return_sequences` for several answers."),
    "constraints": ((None,), "only beam search takes constraints", "Use a logits processor."),
    "force_words_ids": ((None,), "only beam search forces words", "Use a logits processor."),
    "penalty_alpha": ((None, 0), "RAIN replaces contrastive search", _LEAVE_OUT),
    "dola_layers": ((None,), "RAIN searches with the logits of the last layer", _LEAVE_OUT),
    "guidance_scale": (
        (None, 1),
        "classifier-free guidance caches one text and RAIN searches many",
        "Set it to 1.",
    ),
    "negative_prompt_ids": ((None,), "RAIN has no classifier-free guidance", _LEAVE_OUT),
    "negative_prompt_attention_mask": ((None,), "RAIN has no classifier-free guidance", _LEAVE_OUT),
    "assistant_model": ((None,), _ASSISTED, _LEAVE_OUT),
    "assistant_tokenizer": ((None,), _ASSISTED, _LEAVE_OUT),
    "prompt_lookup_num_tokens": ((None,), _ASSISTED, _LEAVE_OUT),
    "assistant_early_exit": ((None,), _ASSISTED, _LEAVE_OUT),
    "use_mtp": (_NEUTRAL, _ASSISTED, _LEAVE_OUT),
    "is_assistant": (_NEUTRAL, "RAIN drafts for no other model", _LEAVE_OUT),
    "synced_gpus": (
        _NEUTRAL,
        "the searches of several processes make different numbers of forward passes",
        "Leave it out, and load the whole model in each process.",
    ),
    "token_healing": (
        _NEUTRAL,
        "it replaces the end of a prompt after the prompt was tokenized",
        "Heal the prompt first, with `model.heal_tokens(input_ids, tokenizer)`.",
    ),
    **dict.fromkeys(
        ("output_scores", "output_logits", "output_attentions", "output_hidden_states"),
        (_NEUTRAL, _MANY_SETS, _OUTPUT_FIX),
    ),
}

_BEAMS_ONLY = "beam search alone reads it"
_ASSISTED_ONLY = "assisted decoding alone reads it"
_SPEED = "it changes memory and time, not the tokens"
_ENCODER_DECODER = "encoder-decoder models alone read it"

WITHOUT_EFFECT: dict[str, str] = {
    "early_stopping": _BEAMS_ONLY,
    "length_penalty": _BEAMS_ONLY,
    "diversity_penalty": _BEAMS_ONLY,
    "decoder_start_token_id": _ENCODER_DECODER,
    **dict.fromkeys(
        (
            *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
            *("max_matching_ngram_size", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight"),
            "speculation_type",
        ),
        _ASSISTED_ONLY,
    ),
    **dict.fromkeys(
        ("cache_config", "max_cache_len", "compile_config", "disable_compile", "prefill_chunk_size", "low_memory"),
        _SPEED,
    ),
    "trust_remote_code": "RAIN loads no code",
    "continuous_batching_config": "`generate_batch` alone reads it",
    "transformers_version": "it says where the config comes from",
}


def refuse_options(*sources: Any) -> None:
    """Raise `ValueError` for an option that RAIN refuses; warn of fields that it does not know.

    Args:
        sources: where options come from, the first that has a value first: mappings, or generation configs.
    """
    for name, (neutral, reason, fix) in REFUSED.items():
        value = _first(name, sources)
        if not any(value is each or (isinstance(value, int | float) and value == each) for each in neutral):
            raise ValueError(f"{_shown(name, value)}, but {reason}. {fix}")
    for source in sources:
        if isinstance(source, GenerationConfig):
            _warn_of_unknown_fields(source)


def _first(name: str, sources: tuple) -> Any:
    values = (each.get(name) if isinstance(each, Mapping) else getattr(each, name, None) for each in sources)
    return next((value for value in values if value is not None), None)


def _shown(name: str, value: Any) -> str:
    if value is True:
        return f"`{name}=True`"
    is_plain = isinstance(value, str | int | float | list | tuple)
    return f"`{name}` is {value!r:.80}" if is_plain else f"`{name}` was passed"


def _warn_of_unknown_fields(config: GenerationConfig) -> None:
    """A later transformers may have fields that are in no table."""
    for name, default in vars(GenerationConfig()).items():
        value = getattr(config, name, None)
        is_known = name.startswith("_") or name in HONORED or name in REFUSED or name in WITHOUT_EFFECT
        if not is_known and value is not None and value != default:
            _warn_once(name)


@functools.cache
def _warn_once(name: str) -> None:
    logger.warning(
        f"`{name}` is set in the generation config, but this version of hf_interdistill does not know the field, so "
        "it may have no effect on RAIN. Leave it out, or use a newer version."
    )
