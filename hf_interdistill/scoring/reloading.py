"""Checks that a saved reward model, loaded again, gives the same tokens and rewards as the one in memory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer

from ..utils.privacy import public_name
from ..utils.whole_models import adapter_keys, refuse_missing
from .batching import TEXTS, evaluation_mode, probe_rows, tolerance
from .loading import load_reward_model

logger = logging.getLogger(__name__)

_WRITTEN = (*TEXTS, "  Tabs\tand lines\n\nin 漢字, naïve é and 🙂.")
_SPECIAL = ("pad_token_id", "eos_token_id", "bos_token_id")


class ReloadError(ValueError):
    """A saved reward model is not the one in memory; the message says how they differ."""


def require_same_when_reloaded(model: Any, tokenizer, folder: str, *, is_sharded: bool = False) -> None:
    """Load a saved reward model as `RewardScorer` would, on the CPU, and compare it with the one in memory.

    Args:
        model: the model that was saved, with or without PEFT, not wrapped for several processes.
        tokenizer: the tokenizer that was saved with it.
        folder: where they were saved.
        is_sharded: this process has only a part of the weights, so rewards are not compared. Those of adapters on
            quantized models are not either: the base model would be loaded in full precision.

    Raises:
        ReloadError: other token ids, another chat template, other rewards; or it cannot be loaded.
        IncompleteModelError: weights are missing.
    """
    name = public_name(folder)
    is_adapter = hasattr(model, "peft_config")
    if is_adapter:
        _require_adapter_file(model, folder)
        base = model.active_peft_config.base_model_name_or_path
        if not base:
            logger.warning(
                f"The adapter saved in {name} was trained on a model that was made in memory, so nobody can load it. "
                "Save the base model (`save_pretrained`) and load it from its folder before training, or merge the "
                "adapter (`merge_and_unload`) and save the result."
            )
            return
    is_quantized = getattr(model.config, "quantization_config", None) is not None
    has_parts = is_sharded or (is_adapter and is_quantized)
    try:
        stored = AutoTokenizer.from_pretrained(folder)
        _require_same_tokens(tokenizer, stored, name)
        if has_parts and is_adapter:
            return
        placement = {"device_map": "meta"} if has_parts else {}
        reloaded, _ = load_reward_model(str(folder), stored, dtype=model.dtype, **placement)
    except (OSError, KeyError, SafetensorError) as error:
        if is_adapter and isinstance(error, OSError):
            logger.warning(f"The adapter saved in {name} was not compared: its base model cannot be loaded. {error}")
            return
        raise ReloadError(
            f"The reward model is saved in {name}, but cannot be loaded from there: {error}. Models of a class of "
            "your own need `AutoModelForSequenceClassification.register`."
        ) from error
    if not has_parts:
        _require_same_rewards(model, reloaded.eval(), tokenizer, name)


def _require_adapter_file(model, folder: str) -> None:
    with safe_open(Path(folder) / "adapter_model.safetensors", framework="pt") as file:
        saved = set(file.keys())
    refuse_missing(folder, sorted(adapter_keys(model) - saved), "Free disk space and save it again.")


def _require_same_tokens(tokenizer, stored, name: str) -> None:
    for text in _WRITTEN:
        expected, found = (each(text)["input_ids"] for each in (tokenizer, stored))
        if expected != found:
            raise ReloadError(
                f"The tokenizer saved in {name} reads {text[:20]!r} as the ids {found[:8]}, but the one in memory as "
                f"{expected[:8]}: the reward model would read different tokens than in training. Change the "
                "tokenizer in "
                "ways that `save_pretrained` stores, and save again."
            )
    different = [
        field for field in (*_SPECIAL, "chat_template") if getattr(tokenizer, field) != getattr(stored, field)
    ]
    if different:
        raise ReloadError(
            f"The tokenizer saved in {name} has another {', '.join(f'`{field}`' for field in different)} than the one "
            "in memory. Set it on the tokenizer itself before training, and save again."
        )


def _require_same_rewards(model, reloaded, tokenizer, name: str) -> None:
    rows = probe_rows(model, tokenizer)
    expected, found = (_rewards(each, rows) for each in (model, reloaded))
    error = (expected - found).abs().max() / expected.abs().max().clamp(min=1e-8)
    if not error <= tolerance(model):
        kinds = f"{type(model).__name__} in memory, {type(reloaded).__name__} when loaded"
        raise ReloadError(
            f"The reward model saved in {name} gives the rewards {_shown(found)} when it is loaded, but the one in "
            f"memory {_shown(expected)} ({kinds}). The cause is not in its weights and config. Models "
            "of a class of your own need `AutoModelForSequenceClassification.register`; an adapter needs exactly "
            "the base model that it names."
        )


@torch.no_grad()
def _rewards(model, rows: list[list[int]]) -> torch.Tensor:
    """Rewards `(rows,)` of token rows read one by one, float32, without the autocast that accelerate puts around."""
    forward = vars(model).get("_original_forward", model)
    rewards = []
    with evaluation_mode(model):
        for row in rows:
            ids = torch.tensor([row], device=model.device)
            rewards.append(forward(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0].float().cpu())
    return torch.stack(rewards)


def _shown(rewards: torch.Tensor) -> list[float]:
    return [round(reward, 4) for reward in rewards.tolist()]
