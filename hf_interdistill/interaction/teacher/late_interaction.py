"""Late interaction: each response is read with the prompt in its own row, and the rows attend to each other on top.

In the lower layers the rows are independent, so their states are those of single responses. In the top layers each
token also attends to the tokens of the partner row.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ..attention.interceptor import AttentionInterceptor
from ..attention.recorder import RecordedAttention

LATE_INTERACTION_IMPLEMENTATIONS = ("sdpa", "eager")


class PartnerAttention(AttentionInterceptor):
    """Context in which the two rows of each pair attend to each other in the top layers of an encoder.

    Source: ours. Late interaction of separately encoded texts comes from retrieval (ColBERT, arXiv 2004.12832;
    Poly-encoders, arXiv 1905.01969); here the encoder's own attention does it.

    Args:
        model: a bidirectional encoder that runs `sdpa` or `eager` attention. In a batch the two rows of a pair follow
            each other: `(2 * pairs, length)`.
        first_cross_layer: the lowest layer in which the rows attend to each other.
    """

    def __init__(self, model: nn.Module, first_cross_layer: int):
        super().__init__(model)
        self.first_cross_layer = first_cross_layer

    def intercept(self, layer, attend, query, key, value, attention_mask, **kwargs):
        if layer >= self.first_cross_layer:
            key, value = with_partner(key, 2), with_partner(value, 2)
            if attention_mask is not None:  # expanded first, since a model may give one mask for all rows
                attention_mask = with_partner(attention_mask.expand(len(query), -1, -1, -1), 3)
        return attend(query, key, value, attention_mask, **kwargs)


def with_partner(rows: torch.Tensor, dim: int) -> torch.Tensor:
    """Each row concatenated with the other row of its pair along `dim`: `(2 * pairs, ...)`, `dim` twice as long."""
    partners = rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return torch.cat([rows, partners], dim=dim)


def concatenate_pair_rows(record: RecordedAttention) -> RecordedAttention:
    """A recording of late interaction with one row per pair: queries and keys `(pairs, heads, 2 * length, head_dim)`.

    Args:
        record: made inside `PartnerAttention`: `(2 * pairs, ...)`, each row's keys followed by its partner's.
    """
    length = record.query.shape[2]

    def concatenated(states: torch.Tensor) -> torch.Tensor:
        return states[:, :, :length].unflatten(0, (-1, 2)).transpose(1, 2).flatten(2, 3)

    return replace(record, query=concatenated(record.query), key=concatenated(record.key))
