"""Reward margins of tokenized pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm.auto import tqdm

from ..data.teacher_inputs import PairLayout, TokenizedPair
from .pair_encoder import PairEncoder, reward_margins


@torch.no_grad()
def pair_margins(
    network: PairEncoder,
    layout: PairLayout,
    pairs: Sequence[TokenizedPair],
    *,
    batch_size: int,
    is_progress_shown: bool,
) -> torch.Tensor:
    """Margins in both reading orders, `(pairs, 2)` float32, in evaluation mode and in batches of similar lengths."""
    packed = [layout.pack(pair) for pair in pairs]
    order = sorted(range(len(packed)), key=lambda i: -len(packed[i][0].ids))
    margins = torch.zeros(len(packed), 2)
    was_training, device = network.training, network.score.weight.device
    network.eval()
    for start in tqdm(range(0, len(order), batch_size), desc="Scoring pairs", disable=not is_progress_shown):
        chunk = order[start : start + batch_size]
        batch = layout.format.collate([row for i in chunk for row in packed[i]])
        batch.pop("units")
        rewards = network(**{name: tensor.to(device) for name, tensor in batch.items()})
        margins[chunk] = reward_margins(rewards.float().cpu()).expand(-1, 2)
    network.train(was_training)
    return margins
