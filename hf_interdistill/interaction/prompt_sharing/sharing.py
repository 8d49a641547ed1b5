"""Runs a reward model on packed pairs: one pass for prompt, chosen and rejected, the rewards of two.

The score head runs on every token of a row; a hook on it hands the scores of the two last tokens to the model's own
pooling, so the rewards leave through the model's own output, and DDP, FSDP and autocast see an ordinary forward pass.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager

import torch
from accelerate.utils import is_peft_model
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from .packing import PackedPairs

SHARE_PROMPT_CHOICES = ("auto", "true", "false")
_FULL, _SLIDING = "full_attention", "sliding_attention"
_LEAST_SAVING = 0.1  # part of the tokens that must be saved for `auto`; below, a packed row's wider mask costs more
# Largest relative difference of rewards that rounding explains; a wrong mask or position gives far more.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def why_not_shareable(model: nn.Module) -> str | None:
    """Why a model cannot read a pair in one row, or `None` if nothing speaks against it."""
    config = model.config.get_text_config()
    attention = getattr(config, "_attn_implementation", None)
    if attention not in ("sdpa", "eager"):
        return f"its attention implementation is {attention!r}, which takes no mask of its own ('sdpa' and 'eager' do)"
    # Jamba and others told their kinds of layers by another name before they all told them alike.
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or []
    other = sorted({*kinds} - {_FULL, _SLIDING, "attention"})
    if other:
        return f"it has layers of {', '.join(other)}, which read a row from left to right without a mask"
    if is_peft_model(model) and any(settings.is_prompt_learning for settings in model.peft_config.values()):
        return "its adapter puts tokens of its own before the prompt"
    base = model.get_base_model() if is_peft_model(model) else model
    if not isinstance(getattr(base, "score", None), nn.Module):
        return "it has no score head named `score`"
    decoder = getattr(base, base.base_model_prefix, base)
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        return "it takes no `position_ids`"
    return None


def sliding_window(model: nn.Module) -> int | None:
    """Tokens that the narrowest attention layer sees; `None` if all layers see everything."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    return None if kinds and _SLIDING not in kinds else getattr(config, "sliding_window", None)


class PromptSharing:
    """Decides batch by batch whether pairs are read in one row, and reads them so.

    Args:
        model: the reward model (a PEFT model or not, not wrapped for several processes).
        choice: `auto`, `true` or `false`.
        precision: of the forward pass (that of autocast, if any).

    `reason` tells why pairs are never shared, or is `None`.

    Raises:
        ValueError: `true` for a model that cannot do it.
    """

    def __init__(self, model: nn.Module, choice: str, precision: torch.dtype):
        self.choice, self.precision = choice, precision
        self.reason = "`share_prompt` is false" if choice == "false" else why_not_shareable(model)
        if choice == "true" and self.reason is not None:
            raise ValueError(
                f"`share_prompt` is true, but {type(model).__name__} cannot read a pair in one row: {self.reason}. "
                "Set `share_prompt` to 'auto' to make two passes where it must be."
            )
        self._window = sliding_window(model)
        self._base = model.get_base_model() if is_peft_model(model) else model

    def pack(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> PackedPairs | None:
        """The batch in one row a pair, or `None` if two passes are better or needed."""
        if self.reason is not None:
            return None
        if self._window is not None and int(attention_mask.sum(1).max()) > self._window:
            if self.choice == "true":
                raise ValueError(
                    f"`share_prompt` is true, but a row of {int(attention_mask.sum(1).max())} tokens is longer than "
                    f"the model's attention window of {self._window}. Lower `max_length` or set `share_prompt` to "
                    "'auto'."
                )
            return None
        packed = PackedPairs.from_rows(input_ids, attention_mask)
        is_smaller = packed.input_ids.numel() <= (1 - _LEAST_SAVING) * input_ids.numel()
        return packed if is_smaller or self.choice == "true" else None

    def forward(self, model: nn.Module, packed: PackedPairs, **kwargs) -> SequenceClassifierOutputWithPast:
        """Rewards `(2 * pairs, 1)`, chosen then rejected, from one pass over packed rows.

        Args:
            model: the reward model as the trainer calls it (wrapped or not).
            **kwargs: for the model's forward (`use_cache`).
        """
        with self._scores_at(packed.last_token_index):
            output = model(
                input_ids=packed.input_ids,
                attention_mask=self._mask(packed.visible),
                position_ids=packed.position_ids,
                **kwargs,
            )
        return SequenceClassifierOutputWithPast(logits=output.logits.transpose(0, 1).reshape(-1, 1))

    @contextmanager
    def _scores_at(self, last_token_index: torch.Tensor):
        """Whatever token the model pools, it finds the scores of the two last tokens there."""

        def hand_over(module, inputs, scores):
            pairs, length, _ = scores.shape
            both = scores[..., 0].gather(1, last_token_index)
            return both[:, None].expand(pairs, length, 2)

        handle = self._base.score.register_forward_hook(hand_over)
        try:
            yield
        finally:
            handle.remove()

    def _mask(self, visible: torch.Tensor) -> torch.Tensor:
        """`(pairs, 1, packed, packed)`: bool for sdpa, added to the scores for eager attention."""
        if self._base.config.get_text_config()._attn_implementation == "sdpa":
            return visible[:, None]
        dtype = self._base.dtype
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]

    @torch.no_grad()
    def deviation(self, model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Relative difference between the rewards of one row and of two passes, divided by what rounding explains.

        A scalar; above 1 the model does something else with packed rows. Run in evaluation mode, so that dropout does
        not blur it, and on rows cut to the model's attention window. Linear layers, which know no dropout, are left as
        they are: on processors with AVX512-BF16 bitsandbytes packs its 4-bit ones anew when they run in evaluation
        mode, and rounds their scales to bfloat16 for good.
        """
        input_ids, attention_mask = input_ids[:, : self._window], attention_mask[:, : self._window]
        packed = PackedPairs.from_rows(input_ids, attention_mask)
        training = [module for module in model.modules() if module.training and not isinstance(module, nn.Linear)]
        for module in training:
            module.training = False
        try:
            rewards = self.forward(model, packed, use_cache=False).logits.float()
            plain = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits.float()
        finally:
            for module in training:
                module.training = True
        scale = plain.norm().clamp(min=torch.finfo(torch.float32).tiny)
        return (rewards - plain).norm() / scale / _TOLERANCE[self.precision]
