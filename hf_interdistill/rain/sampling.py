"""Draws that depend on what is drawn, not on when: one counter-based stream for every prefix.

A draw is `argmax(log p + Gumbel noise)`, with the noise a hash of (stream, token id). So a prompt gets the same tokens
whatever it is batched with, unless two tokens lie closer together than the rounding of the logits. In float32 that is
about one draw in a million; in bfloat16, whose logits differ in the third digit from batch to batch, it is not rare.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

_WORD = (1 << 63) - 1
# Constants of the SplitMix64 finalizer, as signed 64-bit integers (torch multiplies modulo 2^64).
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_SECOND = 0x94D049BB133111EB - (1 << 64)


def stream_key(*parts: int | str | Sequence[int]) -> int:
    """A 63-bit key of numbers, words and token sequences."""
    text = "|".join(str(part) if isinstance(part, int | str) else ",".join(map(str, part)) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") & _WORD


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical (unsigned) right shift of int64."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def uniform_noise(keys: torch.Tensor, counters: torch.Tensor) -> torch.Tensor:
    """Uniform numbers in (0, 1), float64: a hash of `keys` `(rows, 1)` and `counters` `(rows or 1, columns)`."""
    state = keys + (counters + 1) * _GOLDEN
    state = (state ^ _shift(state, 30)) * _MIX_FIRST
    state = (state ^ _shift(state, 27)) * _MIX_SECOND
    state = state ^ _shift(state, 31)
    return (_shift(state, 11).double() + 0.5) / (1 << 53)


def draw(scores: torch.Tensor, keys: Sequence[int], ids: torch.Tensor | None = None) -> torch.Tensor:
    """Columns drawn with probability `softmax(scores)`.

    Args:
        scores: `(rows, columns)`; `-inf` is never drawn.
        keys: a stream key for each row.
        ids: token ids of the columns, `(rows, columns)`; the column numbers if not given.

    Returns:
        Column numbers, `(rows,)`.
    """
    device = scores.device
    if ids is None:
        ids = torch.arange(scores.shape[1], device=device).unsqueeze(0)
    noise = uniform_noise(torch.tensor(keys, dtype=torch.int64, device=device).unsqueeze(1), ids)
    return (scores.double() - torch.log(-torch.log(noise))).argmax(dim=-1)
