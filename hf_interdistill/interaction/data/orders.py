"""Which response a teacher reads first, where it reads both in one row."""

from __future__ import annotations

import torch

from ...utils.random_streams import hash_bits, stream_key


def choose_order(pair_keys: torch.Tensor, seed: int, visit: int) -> torch.Tensor:
    """Which response the teacher reads first, `(pairs,)`: 0 chosen, 1 rejected.

    A fair coin for each pair and visit. It depends on nothing else: not on the batch, the process, or where a run was
    interrupted.

    Args:
        pair_keys: `(pairs,)`, the column `pair_key`.
        seed: of the run. visit: number of the epoch in training, 0 in evaluation.
    """
    keys = pair_keys.long() + stream_key("reading order", seed)
    return hash_bits(keys, torch.tensor(visit, device=keys.device)) & 1


def select_order(teacher_inputs: dict[str, torch.Tensor], order: torch.Tensor) -> dict[str, torch.Tensor]:
    """The teacher's inputs in the order chosen for each pair: `(pairs, 2, ...)` to `(pairs, ...)`."""
    pairs = torch.arange(len(order), device=order.device)
    return {name: tensor[pairs, order] for name, tensor in teacher_inputs.items()}
