"""Loads a complete causal language model for generation, and its tokenizer."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM
from transformers.utils import find_adapter_config_file

from .privacy import public_name
from .sources import load_tokenizer, loading
from .whole_models import load_with_report, refuse_missing


def load_causal_lm(name: str, dtype: str = "auto") -> tuple[Any, Any]:
    """Model and tokenizer by a folder's or a Hub name; the folder may be that of a PEFT adapter such as LoRA.

    Raises:
        SourceNotFoundError: there is no such model. IncompleteModelError: weights are missing, as the LM head of a
            reward model is. ValueError: an adapter with virtual tokens.
    """
    with loading(name):
        tokenizer = load_tokenizer(name)
        _refuse_virtual_tokens(name)
        model, report = load_with_report(AutoModelForCausalLM, name, dtype=dtype)
    fix = "Use a causal language model: reward models and encoders have no LM head."
    refuse_missing(name, report.missing.values(), fix)
    return model, tokenizer


def _refuse_virtual_tokens(name: str) -> None:
    if find_adapter_config_file(name) is None:
        return
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(name)
    if config.is_prompt_learning:
        raise ValueError(
            f"The adapter in {public_name(name)} is {getattr(config.peft_type, 'value', config.peft_type)} of PEFT, "
            "whose virtual tokens come before the prompt, but a job generates with weights alone. Use an adapter "
            f"that changes weights, such as LoRA, or its base model {config.base_model_name_or_path}."
        )
