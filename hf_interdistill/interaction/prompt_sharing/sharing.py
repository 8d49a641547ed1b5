"""Runs a reward model on packed pairs: one pass over prompt, chosen and rejected gives the rewards of two passes.

The score head runs on every token of a row. A hook on it passes the scores of the two last tokens to the model's own
pooling. The rewards are therefore the model's own output, and DDP, FSDP and autocast see an ordinary forward pass.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from ...utils.model_config import text_config
from .implementations import FLASH, IMPLEMENTATIONS, accept_layouts, attention_inputs, flash_reason
from .packing import PackedPairs

logger = logging.getLogger(__name__)

SHARE_PROMPT_CHOICES = ("auto", "true", "false")
_FULL, _SLIDING = "full_attention", "sliding_attention"
_LEAST_SAVING = 0.1  # share of tokens that `auto` must save; below it the larger mask of a packed row costs more
# Largest relative error of rewards that rounding explains; a wrong mask or position gives far more.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def unsupported_reason(model: nn.Module) -> str | None:
    """Why a model cannot process a pair in one packed row, or `None` if it can."""
    config = text_config(model)
    attention = getattr(config, "_attn_implementation", None)
    if attention not in IMPLEMENTATIONS:
        return f"its attention implementation is {attention!r}, but must be one of {', '.join(IMPLEMENTATIONS)}"
    if reason := flash_reason(attention):
        return reason
    # Jamba and others named this field `layers_block_type` in earlier releases.
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or []
    other = sorted({*kinds} - {_FULL, _SLIDING, "attention"})
    if other:
        return f"it has layers of {', '.join(other)}, which process a row sequentially without a mask"
    if _has_prompt_learning(model):
        return "its adapter adds virtual tokens before the prompt"
    base = _base_model(model)
    if not isinstance(getattr(base, "score", None), nn.Module):
        return "it has no score head named `score`"
    decoder = getattr(base, base.base_model_prefix, base)
    taken = inspect.signature(decoder.forward).parameters
    if "position_ids" not in taken:
        return "it takes no `position_ids`"
    if attention in FLASH and not any(each.kind == each.VAR_KEYWORD for each in taken.values()):
        return f"it passes no arguments on to its attention function, which {attention} needs"
    return None


def sliding_window(model: nn.Module) -> int | None:
    """Width in tokens of the sliding attention window; `None` if all layers have full attention."""
    config = text_config(model)
    kinds = getattr(config, "layer_types", None)
    return None if kinds and _SLIDING not in kinds else getattr(config, "sliding_window", None)


def _base_model(model: Any) -> PreTrainedModel:
    """The transformers model, out of PEFT's wrapper."""
    return model.get_base_model() if is_peft_model(model) else model


def _has_prompt_learning(model: Any) -> bool:
    return is_peft_model(model) and any(settings.is_prompt_learning for settings in model.peft_config.values())


class PromptSharing:
    """Decides per batch whether pairs are processed in one packed row, and runs the model on packed rows.

    Args:
        model: the reward model (with or without PEFT, not wrapped for several processes).
        choice: `auto`, `true` or `false`.
        precision: dtype of the forward pass under autocast; by default the model's own.

    `disabled_reason` says why pairs are never packed; `None` if they can be.

    Raises:
        ValueError: `choice` is `true` and the model does not support it.
    """

    def __init__(self, model: nn.Module, choice: str, precision: torch.dtype | None = None):
        self.choice = choice
        self.disabled_reason = "`share_prompt` is false" if choice == "false" else unsupported_reason(model)
        self._model_name = type(model).__name__
        if choice == "true" and self.disabled_reason is not None:
            raise ValueError(
                f"`share_prompt` is true, but {self._model_name} cannot process a pair in one row: "
                f"{self.disabled_reason}. Set `share_prompt` to 'auto' to fall back to two passes."
            )
        if choice == "auto" and self.disabled_reason is not None:
            logger.info(f"Each pair takes two passes instead of one (`share_prompt`): {self.disabled_reason}.")
        if self.disabled_reason is None:
            accept_layouts(text_config(model)._attn_implementation)
        self._window = sliding_window(model)
        self._base = _base_model(model)
        self.precision = precision or self._base.dtype
        self._is_verified = self.disabled_reason is not None

    def verify_once(
        self,
        model: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        gather: Callable[[torch.Tensor], torch.Tensor] = lambda error: error,
    ) -> None:
        """On the first call, run a batch in one row and in two, and disable packing if that fails or rewards differ.

        Args:
            model: the reward model as the trainer calls it.
            input_ids, attention_mask: `(2 * pairs, length)`, chosen rows, then rejected rows.
            gather: collects a tensor of all processes along the first dimension (`accelerator.gather`).

        Raises:
            ValueError: the rewards differ and `choice` is `true`; then also what the model raises.
        """
        if self._is_verified:
            return
        self._is_verified = True
        failure = None
        try:
            own_error = self.relative_reward_error(model, input_ids, attention_mask)
        except (AttributeError, TypeError, ValueError) as problem:  # of a model file that uses a mask in its own way
            if self.choice == "true":
                raise
            own_error, failure = torch.full((1,), torch.inf, device=input_ids.device), problem
        error = float(gather(own_error.reshape(1)).max())
        if error <= 1:
            return
        message = (
            f"{self._model_name} gives different rewards for a pair in one row and in two rows (their relative "
            f"difference is {error:.3g} times what rounding explains)"
        )
        if failure is not None:
            message = f"{self._model_name} cannot read a pair in one row ({type(failure).__name__}: {failure})"
        if self.choice == "true":
            raise ValueError(f"{message}. Set `share_prompt` to 'auto' or 'false'.")
        logger.warning(f"{message}: falling back to two passes.")
        self.disabled_reason = message

    def pack(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, responses: int = 2) -> PackedPairs | None:
        """Pack a batch into one row per prompt; `None` if separate rows are cheaper or required.

        Args:
            input_ids, attention_mask, responses: as in `PackedPairs.from_rows`.

        Raises:
            ValueError: `choice` is `true` and a row is longer than the attention window.
        """
        if self.disabled_reason is not None:
            return None
        if self._window is not None and int(attention_mask.sum(1).max()) > self._window:
            if self.choice == "true":
                raise ValueError(
                    f"`share_prompt` is true, but a row of {int(attention_mask.sum(1).max())} tokens is longer than "
                    f"the model's attention window of {self._window}. Lower `max_length` or set `share_prompt` to "
                    "'auto'."
                )
            return None
        packed = PackedPairs.from_rows(input_ids, attention_mask, text_config(self._base).pad_token_id, responses)
        is_smaller = packed.input_ids.numel() <= (1 - _LEAST_SAVING) * input_ids.numel()
        return packed if is_smaller or self.choice == "true" else None

    def packed_model(self, model: nn.Module, packed: PackedPairs) -> Callable:
        """A function that `RewardTrainer` can call as its model: it runs `forward` on the packed rows instead."""
        return lambda use_cache, **inputs: self.forward(model, packed, use_cache=use_cache)

    def forward(self, model: nn.Module, packed: PackedPairs, **kwargs) -> SequenceClassifierOutputWithPast:
        """Rewards `(responses * pairs, 1)`, chosen, rejected, then others, from one pass over packed rows.

        Args:
            model: the reward model as the trainer calls it (wrapped or not).
            **kwargs: arguments of the model's forward (`use_cache`).
        """
        return SequenceClassifierOutputWithPast(logits=self._rewards(model, packed, **kwargs))

    def _rewards(self, model: nn.Module, packed: PackedPairs, **kwargs) -> torch.FloatTensor:
        attention = text_config(self._base)._attn_implementation
        seen = attention_inputs(packed, attention, self._base.dtype)
        with self._scores_at(packed.last_token_index):
            output = model(input_ids=packed.input_ids, position_ids=packed.position_ids, **seen, **kwargs)
        return output.logits.transpose(0, 1).reshape(-1, 1)

    @contextmanager
    def _scores_at(self, last_token_index: torch.Tensor):
        """Put the scores of the last tokens at every position, so that any pooling of the model returns them."""

        def select_scores(module, inputs, scores):
            pairs, length, _ = scores.shape
            last = scores[..., 0].gather(1, last_token_index)
            return last[:, None].expand(pairs, length, last.shape[1])

        handle = self._base.get_submodule("score").register_forward_hook(select_scores)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def relative_reward_error(
        self, model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Relative difference of the rewards of one pass and of two, divided by the difference that rounding explains.

        A scalar; above 1 the model does not support packed rows. It runs in evaluation mode, so that dropout does not
        add noise, and on rows truncated to the attention window. Linear layers have no dropout and keep their mode: on
        CPUs with AVX512-BF16, bitsandbytes repacks its 4-bit layers when they run in evaluation mode, which
        permanently rounds their scales to bfloat16.
        """
        input_ids, attention_mask = input_ids[:, : self._window], attention_mask[:, : self._window]
        packed = PackedPairs.from_rows(input_ids, attention_mask, text_config(self._base).pad_token_id)
        training = [module for module in model.modules() if module.training and not isinstance(module, nn.Linear)]
        for module in training:
            module.training = False
        try:
            rewards = self._rewards(model, packed, use_cache=False).float()
            expected = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits.float()
        finally:
            for module in training:
                module.training = True
        scale = expected.norm().clamp(min=torch.finfo(torch.float32).tiny)
        return (rewards - expected).norm() / scale / _TOLERANCE[self.precision]
