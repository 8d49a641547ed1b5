"""Random bits by key and counter: the same whatever the batch, the device, the process or an interruption."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

_WORD = (1 << 63) - 1
# Constants of SplitMix64 as signed 64-bit integers (torch multiplies modulo 2^64).
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_SECOND = 0x94D049BB133111EB - (1 << 64)


def stream_key(*parts: int | str | Sequence[int]) -> int:
    """A 63-bit key of numbers, words and token sequences."""
    text = "|".join(str(part) if isinstance(part, int | str) else ",".join(map(str, part)) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") & _WORD


def hash_bits(keys: torch.Tensor, counters: torch.Tensor) -> torch.Tensor:
    """53 random bits for each key and counter: output number `counter` of the stream `key`, without its low bits.

    Source: SplitMix64 (Steele, Lea and Flood, 2014).

    Args:
        keys, counters: int64, of shapes that broadcast.

    Returns:
        int64 from 0 to 2^53 - 1, of the broadcast shape.
    """
    state = (counters + 1) * _GOLDEN + keys
    state ^= _shift(state, 30)
    state *= _MIX_FIRST
    state ^= _shift(state, 27)
    state *= _MIX_SECOND
    state ^= _shift(state, 31)
    return _shift(state, 11)


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical (unsigned) right shift of int64."""
    return (value >> bits).bitwise_and_((1 << (64 - bits)) - 1)
