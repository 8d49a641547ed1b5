"""How each attention implementation is told what the tokens of packed rows see.

`sdpa` and `eager` take a mask, `flex_attention` a block mask. Flash attention takes no mask: its varlen function gets
every segment of a packed row as a sequence of its own, whose keys are those of the prefix and of the segment. With as
many keys as the segment has places in its own row, a causal mask that is aligned at the bottom right is the exact one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

from .packing import PackedPairs

FLASH = ("flash_attention_2", "flash_attention_3")
IMPLEMENTATIONS = ("sdpa", "eager", "flex_attention", *FLASH)
_LAYOUT = "shared_prompt_layout"  # an argument that models pass on to their attention function


@dataclass(frozen=True)
class FlashLayout:
    """The segments of packed rows as sequences of different lengths: prefix, rest of the chosen row, and so on.

    Args:
        queries: `(queries,)` places of the tokens in the flattened rows, segment by segment.
        keys: `(keys,)` places of what each segment's tokens see: the prefix and the segment.
        query_starts, key_starts: `(segments + 1,)` int32, where each segment's queries and keys start.
        longest_query, longest_key: lengths of the longest ones.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    query_starts: torch.Tensor
    key_starts: torch.Tensor
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, packed: PackedPairs) -> FlashLayout:
        """The layout of packed rows; segments without tokens are left out."""
        pairs, width = packed.input_ids.shape
        device = packed.input_ids.device
        place = torch.arange(width, device=device)
        is_prefix = (place < packed.prefix[:, None])[:, None]  # (pairs, 1, width)
        branch = torch.arange(packed.last_token_index.shape[1], device=device)[None, :, None]
        is_branch = (packed.owner[:, None] == branch) & ~is_prefix  # (pairs, responses, width)
        is_query = torch.cat([is_prefix, is_branch], 1)
        is_key = torch.cat([is_prefix, is_branch | is_prefix], 1)
        is_there = is_query.any(2)
        flat = (torch.arange(pairs, device=device)[:, None, None] * width + place).expand_as(is_query)
        lengths = [each.sum(2)[is_there] for each in (is_query, is_key)]
        query_starts, key_starts = (
            torch.nn.functional.pad(each.cumsum(0), (1, 0)).to(torch.int32) for each in lengths
        )
        longest = [int(each.max()) for each in lengths]
        keys = flat[is_key & is_there[..., None]]
        return cls(flat[is_query], keys, query_starts, key_starts, longest[0], longest[1])


def attention_inputs(packed: PackedPairs, implementation: str, dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of a model's forward pass that let packed tokens see their own rows.

    Args:
        packed: the rows. implementation: one of `IMPLEMENTATIONS`. dtype: of the model, for `eager`.
    """
    if implementation in FLASH:
        return {"attention_mask": None, _LAYOUT: FlashLayout.of(packed)}
    if implementation == "flex_attention":
        return {"attention_mask": _block_mask(packed)}
    visible = packed.visible[:, None]
    if implementation == "sdpa":
        return {"attention_mask": visible}
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return {"attention_mask": mask.masked_fill_(~visible, torch.finfo(dtype).min)}


def _block_mask(packed: PackedPairs):
    from torch.nn.attention.flex_attention import create_block_mask

    owner, prefix = packed.owner, packed.prefix
    pairs, width = owner.shape

    def is_visible(pair, head, query, key):
        is_own = (key < prefix[pair]) | (owner[pair, query] == owner[pair, key])
        is_token = (owner[pair, query] >= 0) & (owner[pair, key] >= 0)
        return ((query >= key) & is_own & is_token) | (query == key)

    mask = create_block_mask(is_visible, pairs, None, width, width, device=owner.device)
    mask.ndim = 4  # type: ignore[attr-defined]  # GPT-2 asks a mask for it
    return mask


def flash_reason(implementation: str) -> str | None:
    """Why flash attention cannot process packed rows, or `None` if it can."""
    from transformers.modeling_flash_attention_utils import flash_attn_supports_top_left_mask

    if implementation in FLASH and flash_attn_supports_top_left_mask():
        return "its flash attention aligns causal masks at the top left, and needs them at the bottom right"
    return None


def accept_layouts(implementation: str) -> None:
    """Let the function of flash attention take the layout of packed rows; calls without one are as before.

    To be called before a recorder takes the function's place, which then sees packed rows. The function stays
    registered: gradient checkpointing calls it again in the backward pass.
    """
    if implementation not in FLASH:
        return
    function = AttentionInterface()[implementation]
    if not getattr(function, "takes_layouts", False):
        AttentionInterface.register(implementation, _with_layouts(function))


def _with_layouts(function: Callable) -> Callable:
    def attend(module, query, key, value, attention_mask=None, **kwargs):
        layout = kwargs.pop(_LAYOUT, None)
        if layout is None:
            return function(module, query, key, value, attention_mask, **kwargs)
        varlen = {
            "cu_seq_lens_q": layout.query_starts,
            "cu_seq_lens_k": layout.key_starts,
            "max_length_q": layout.longest_query,
            "max_length_k": layout.longest_key,
        }
        states = [_gathered(query, layout.queries), _gathered(key, layout.keys), _gathered(value, layout.keys)]
        output = function(module, *states, None, **{**kwargs, **varlen})[0][0]  # (queries, heads, size)
        rows = output.new_zeros(query.shape[0] * query.shape[2], *output.shape[1:])
        return rows.index_copy(0, layout.queries, output).unflatten(0, (query.shape[0], query.shape[2])), None

    attend.takes_layouts = True  # type: ignore[attr-defined]
    return attend


def _gathered(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """`(1, heads, places, size)` of `(pairs, heads, length, size)`."""
    return states.transpose(1, 2).flatten(0, 1)[places].transpose(0, 1)[None]
