"""Sources of a teacher's map: a recorded layer, a tensor in memory, or a control in place of the teacher.

Pure tensor code: knows no model, no tokenizer, no trainer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from .maps import UnitTokens, teacher_map
from .recorder import RecordedAttention


class MapSource(Protocol):
    """A batch of maps, computed a range of rows at a time."""

    present: torch.Tensor
    """`(batch, units)` bool: units that the model behind the map has read."""

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows of units `start` to `stop`, `(batch, stop - start, units)`: not negative, each sums to at most 1."""


class RecordedMapSource:
    """The map of a teacher's recorded layer, computed on demand.

    Args:
        record: queries and keys of the layer.
        tokens: the units of its tokens.
    """

    def __init__(self, record: RecordedAttention, tokens: UnitTokens):
        self.map = teacher_map(record, tokens)
        self.present = self.map.present

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows whose attention weights fit in one block."""
        return self.map.blocks()

    @torch.no_grad()
    def rows(self, start: int, stop: int) -> torch.Tensor:
        blocks = [self.map.pool(self.map.attend(*block), *block) for block in self.map.blocks(start, stop)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)


class DenseMapSource:
    """A map that is in memory.

    Args:
        values: `(batch, units, units)`.
        present: `(batch, units)` bool, units that were read; by default those whose row is not all zeros.
    """

    def __init__(self, values: torch.Tensor, present: torch.Tensor | None = None):
        self.values = values
        self.present = values.sum(-1) > 0 if present is None else present

    def blocks(self) -> Iterator[tuple[int, int]]:
        """One range with all rows, since they are in memory."""
        yield 0, self.values.shape[1]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.values[:, start:stop]


class UniformMapSource:
    """Control: every unit attends equally to all units that the teacher has read.

    Args:
        source: the teacher's map.
    """

    def __init__(self, source: MapSource):
        self.present = source.present

    def rows(self, start: int, stop: int) -> torch.Tensor:
        row = self.present / self.present.sum(1, keepdim=True).clamp(min=1)
        return row[:, None].expand(-1, stop - start, -1)


def dense(source: MapSource) -> torch.Tensor:
    """All rows of a map, `(batch, units, units)`."""
    return source.rows(0, source.present.shape[1])


def shuffled_map_source(source: MapSource, segments: torch.Tensor) -> DenseMapSource:
    """Control: each pair gets the map of the next pair in the batch.

    Unit `n` of a segment gets the row and column of unit `n` of the same segment in the other pair. A shorter segment
    repeats from its start. In a batch of one pair, the units of each segment are reversed instead.

    Args:
        source: the teacher's map.
        segments: `(batch, units)` 0 prompt, 1 chosen, 2 rejected, -1 padding.
    """
    values = dense(source)
    batch, units = segments.shape
    donors = torch.arange(batch).roll(-1)
    result = torch.zeros_like(values)
    for pair in range(batch):
        donor = int(donors[pair])
        donor_unit = torch.zeros(units, dtype=torch.long, device=segments.device)
        has_donor = torch.zeros(units, dtype=torch.bool, device=segments.device)
        for segment in range(3):
            own = (segments[pair] == segment).nonzero()[:, 0]
            other = ((segments[donor] == segment) & source.present[donor]).nonzero()[:, 0]
            if len(own) and len(other):
                steps = torch.arange(len(own), device=segments.device) % len(other)
                donor_unit[own] = other.flip(0)[steps] if batch == 1 else other[steps]
                has_donor[own] = True
        keep = has_donor & source.present[pair]
        result[pair] = values[donor][donor_unit][:, donor_unit] * (keep[:, None] & keep[None, :])
    return DenseMapSource(result)
