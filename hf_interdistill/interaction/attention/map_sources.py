"""Where the rows of a teacher's map come from: a recorded layer, memory, or a control in the teacher's place.

Pure tensor code: knows no model, no tokenizer, no trainer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from .maps import UnitTokens, teacher_map
from .recorder import RecordedAttention


class Rows(Protocol):
    """A map that yields its rows a few at a time."""

    present: torch.Tensor
    """`(batch, units)` bool: units that the model behind the map has read."""

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows of units `start` to `stop`: `(batch, stop - start, units)`, not negative, sums at most 1."""


class RecordedRows:
    """Rows of a teacher's recorded layer, computed when asked for."""

    def __init__(self, record: RecordedAttention, tokens: UnitTokens):
        self.map = teacher_map(record, tokens)
        self.present = self.map.present

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows that fit in memory at once."""
        return self.map.blocks()

    @torch.no_grad()
    def rows(self, start: int, stop: int) -> torch.Tensor:
        blocks = [self.map.pool(self.map.attend(*block), *block) for block in self.map.blocks(start, stop)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)


class DenseRows:
    """Rows of a whole map in memory.

    Args:
        values: `(batch, units, units)`.
        present: `(batch, units)` bool, units that were read; by default those whose row is not empty.
    """

    def __init__(self, values: torch.Tensor, present: torch.Tensor | None = None):
        self.values = values
        self.present = values.sum(-1) > 0 if present is None else present

    def blocks(self) -> Iterator[tuple[int, int]]:
        """All rows at once: they are in memory."""
        yield 0, self.values.shape[1]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.values[:, start:stop]


class UniformRows:
    """Control: every unit attends alike to every unit that the teacher has read."""

    def __init__(self, source: Rows):
        self.present = source.present

    def rows(self, start: int, stop: int) -> torch.Tensor:
        row = self.present / self.present.sum(1, keepdim=True).clamp(min=1)
        return row[:, None].expand(-1, stop - start, -1)


def dense(source: Rows) -> torch.Tensor:
    """The whole map, `(batch, units, units)`."""
    return source.rows(0, source.present.shape[1])


def shuffled_rows(source: Rows, segments: torch.Tensor) -> DenseRows:
    """Control: each pair gets the map of the next pair in the batch, unit for unit by place within the segment.

    Segments of other lengths wrap round. A batch of one pair gets its own map with the units of each segment reversed.

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
        place = torch.zeros(units, dtype=torch.long, device=segments.device)
        exists = torch.zeros(units, dtype=torch.bool, device=segments.device)
        for segment in range(3):
            own = (segments[pair] == segment).nonzero()[:, 0]
            other = ((segments[donor] == segment) & source.present[donor]).nonzero()[:, 0]
            if len(own) and len(other):
                steps = torch.arange(len(own), device=segments.device) % len(other)
                place[own] = other.flip(0)[steps] if batch == 1 else other[steps]
                exists[own] = True
        keep = exists & source.present[pair]
        result[pair] = values[donor][place][:, place] * (keep[:, None] & keep[None, :])
    return DenseRows(result)
