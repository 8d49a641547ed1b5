"""Attention in two parts: what all texts of a pass see, without a mask, and what each line sees beside it.

Texts that begin alike (a judge prompt, the prompts of a search) would otherwise be compared under one mask with all
that any of them sees, or each line would get a copy of the beginning. The parts are weighed by their sums of
exponentials, as blocks of flash attention are (arXiv 2205.14135). It runs where torch's kernel hands these out: on a
CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .heads import LOCK

_NAME = "rain_split"
_KERNEL = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


@dataclass
class Common:
    """Keys and values that all tokens of a pass see, `(1, key-value heads, common, head_dim)`: those of the layer that
    is at work."""

    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None


_COMMON: ContextVar[Common | None] = ContextVar("common", default=None)


def can_split(model) -> bool:
    """Whether a model's attention may be split at all; a trial tells whether it gives the same."""
    return _KERNEL is not None and model.device.type == "cpu" and model.config._attn_implementation == "sdpa"


@contextmanager
def split_attention(model) -> Iterator[Common]:
    """While it lasts, the model's layers attend to `Common` too; whoever updates their keys and values sets it. Other
    threads that use the model meanwhile get its own attention."""
    common = Common()
    with LOCK:
        before, token = model.config._attn_implementation, _COMMON.set(common)
        model.config._attn_implementation = _NAME
        try:
            yield common
        finally:
            model.config._attn_implementation = before
            _COMMON.reset(token)


def _attend(module, query, key, value, attention_mask, scaling=None, **kwargs) -> tuple[torch.Tensor, None]:
    """`query` `(lines, heads, width, head_dim)`; `key`, `value` `(lines, key-value heads, seen, head_dim)`."""
    common = _COMMON.get()
    if common is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    lines, heads, width, size = query.shape
    # For what all lines see, they are one line.
    together = query.transpose(0, 1).reshape(1, heads, lines * width, size)
    first, first_log = _KERNEL(together, common.keys, common.values, scale=scaling)
    first = first.view(heads, lines, width, -1).transpose(0, 1)
    first_log = first_log.view(heads, lines, width).transpose(0, 1).unsqueeze(-1)
    second, second_log = _KERNEL(query, key, value, attn_mask=attention_mask, scale=scaling)
    share = torch.sigmoid(second_log.unsqueeze(-1) - first_log).to(query.dtype)
    return torch.lerp(first, second, share).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, sdpa_mask)  # as sdpa's, which is what other threads run meanwhile
