"""Attention of the scored token, from recorded queries and keys: one row per text, nothing of size length x length."""

from __future__ import annotations

import torch

from ...interaction.attention.recorder import RecordedAttention


def scored_attention(record: RecordedAttention, mask: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Attention that the scored token pays to every token, mean over heads: `(batch, length)`, float32, rows sum to 1.

    Args:
        record: query `(batch, heads, length, head_dim)` and key `(batch, key_value_heads, length, head_dim)` of a
            layer.
        mask: `(batch, length)` bool, the real tokens.
        scored: `(batch,)` position of the scored token.
    """
    batch, heads, length, size = record.query.shape
    shared = record.key.shape[1]
    index = scored.view(batch, 1, 1, 1).expand(-1, heads, 1, size)
    query = record.query.gather(2, index).float().reshape(batch, shared, heads // shared, size)
    scores = torch.einsum("bsgd,bsld->bsgl", query, record.key.float()) * record.scaling
    if record.softcap is not None:
        scores = record.softcap * torch.tanh(scores / record.softcap)
    visible = mask
    if record.window is not None:
        position = torch.arange(length, device=mask.device)
        visible = visible & ((scored[:, None] - position).abs() < record.window)
    scores = scores.masked_fill(~visible[:, None, None], float("-inf"))
    return scores.softmax(-1).mean((1, 2))


def stage_masses(weights: torch.Tensor, mask: torch.Tensor, stages: int) -> list[list[float] | None]:
    """For each text the mass on its first token, then the shares of the other mass in equal stages of the rest.

    Args:
        weights: `(batch, length)`, rows sum to 1. mask: `(batch, length)` bool. stages: number of stages.

    Returns:
        `[first token, stage 1, ..., stage n]` per text, the stages summing to 1; `None` for a text too short.
    """
    masses: list[list[float] | None] = []
    for row, real in zip(weights.double().cpu(), mask.cpu(), strict=True):
        row = row[real]
        rest = row[1:]
        if len(rest) < stages or not float(rest.sum()) > 0:
            masses.append(None)
            continue
        parts = [float(part.sum() / rest.sum()) for part in torch.tensor_split(rest, stages)]
        masses.append([float(row[0]), *parts])
    return masses
