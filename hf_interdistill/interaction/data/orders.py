"""Which response a teacher reads first, where it reads both in one row."""

from __future__ import annotations

import torch


def choose_order(pair_keys: torch.Tensor, seed: int, visit: int) -> torch.Tensor:
    """Which response the teacher reads first, `(pairs,)`: 0 chosen, 1 rejected.

    A coin for each pair and visit that depends on nothing else: not on the batch, the process, or where a run was
    interrupted. Source: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014), in 63-bit arithmetic.
    """
    state = pair_keys.long() + (seed * 0x9E3779B97F4A7C1 + visit * 0x61C8864680B583E + 1) % (1 << 62)
    for multiplier, shift in ((0x3F58476D1CE4E5B9, 30), (0x14D049BB133111EB, 27)):
        state = (state ^ ((state >> shift) & ((1 << (63 - shift)) - 1))) * multiplier
    return ((state ^ (state >> 31)) >> 17) & 1


def select_order(teacher_inputs: dict[str, torch.Tensor], order: torch.Tensor) -> dict[str, torch.Tensor]:
    """The teacher's inputs in the order chosen for each pair: `(pairs, 2, ...)` to `(pairs, ...)`."""
    pairs = torch.arange(len(order), device=order.device)
    return {name: tensor[pairs, order] for name, tensor in teacher_inputs.items()}
