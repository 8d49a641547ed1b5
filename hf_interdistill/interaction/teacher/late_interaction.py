"""Late interaction: two responses are read each with the prompt in a row of its own, and meet in the top layers.

Below, a row knows nothing of the other, so the states are those of single responses; in the top layers each token also
attends to the tokens of the partner row.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ..attention.interceptor import AttentionInterceptor
from ..attention.recorder import RecordedAttention

LATE_IMPLEMENTATIONS = ("sdpa", "eager")


class PartnerAttention(AttentionInterceptor):
    """Context in which the rows of each pair attend to each other in the top layers of an encoder.

    Source: ours; late interaction of separately encoded texts is an old idea of retrieval (ColBERT, arXiv 2004.12832;
    Poly-encoders, arXiv 1905.01969), here by the encoder's own attention.

    Args:
        model: a bidirectional encoder that runs `sdpa` or `eager` attention; a batch holds the two rows of a pair one
            after the other, `(2 * pairs, length)`.
        first: the lowest layer in which the rows meet.
    """

    def __init__(self, model: nn.Module, first: int):
        super().__init__(model)
        self.first = first

    def intercept(self, layer, attend, query, key, value, attention_mask, **kwargs):
        if layer >= self.first:
            key, value = with_partner(key, 2), with_partner(value, 2)
            if attention_mask is not None:  # the same for all rows where the model says it once
                attention_mask = with_partner(attention_mask.expand(len(query), -1, -1, -1), 3)
        return attend(query, key, value, attention_mask, **kwargs)


def with_partner(rows: torch.Tensor, dim: int) -> torch.Tensor:
    """Each row and, behind it along `dim`, the other one of its pair: `(2 * pairs, ...)`, that `dim` twice as long."""
    partners = rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return torch.cat([rows, partners], dim=dim)


def pairs_end_to_end(record: RecordedAttention) -> RecordedAttention:
    """A recording of rows that met, with one row a pair: queries and keys `(pairs, heads, 2 * length, head_dim)`.

    Args:
        record: made inside `PartnerAttention`, `(2 * pairs, ...)`, the keys followed by their partners'.
    """
    length = record.query.shape[2]

    def joined(states: torch.Tensor) -> torch.Tensor:
        return states[:, :, :length].unflatten(0, (-1, 2)).transpose(1, 2).flatten(2, 3)

    return replace(record, query=joined(record.query), key=joined(record.key))
