"""Compresses teacher maps to few bytes and expands them again: pure tensor code.

`8bit`: the logarithm of each weight relative to the largest of its row, in 254 even steps down to the smallest. So the
ratio of two weights of a row is kept to half a step each. Expanded rows sum to 1, which changes no loss, since losses
normalize rows. For long texts only the `top_k` largest weights of a row are kept. The rest of the row is spread over
the other columns, in the proportions of all dropped weights of the map. `exact`: every number as it was computed.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..attention.map_sources import DenseMapSource, MapSource, RecordedMapSource
from ..attention.maps import upcast

MAP_PRECISIONS = ("8bit", "exact")
NOT_KEPT = 255
STEPS = 254
MAX_LOG_RANGE = 24.0  # nats; smaller weights are stored as e^-24 of the largest of their row

StoredMap = dict[str, torch.Tensor]


class CompactRows:
    """Rows of 8-bit maps, expanded on demand.

    Args:
        codes: `(batch, units, units)` uint8: steps below the largest weight of the row, or `NOT_KEPT`.
        step: `(batch, units)` nats per step, of each row.
        rest: `(batch, units)` fraction of each row's mass in the columns that were not kept.
        tail: `(batch, units)` proportions in which the columns share that mass.
        present: `(batch, units)` bool, units that the teacher has read.
    """

    def __init__(self, codes, step, rest, tail, present):
        self.codes, self.step, self.rest, self.tail, self.present = codes, step, rest, tail, present

    def rows(self, start: int, stop: int) -> torch.Tensor:
        codes = self.codes[:, start:stop]
        is_kept = codes != NOT_KEPT
        weights = torch.exp(-codes.float() * self.step[:, start:stop, None]) * is_kept
        others = self.tail[:, None].expand_as(weights).masked_fill(is_kept, 0)
        rest = self.rest[:, start:stop, None]
        return _to_sum(weights, 1 - rest) + _to_sum(others, rest)


@dataclass(frozen=True)
class MapFormat:
    """How maps are stored.

    Args:
        precision: `8bit` or `exact`.
        top_k: number of weights kept per row, with `8bit`; `None` keeps all.

    Relations: `CachedTeacher` stores what `compress` returns, and gives the rows of `expand` to the loss.
    """

    precision: str = "8bit"
    top_k: int | None = None

    @torch.no_grad()
    def compress(self, source: RecordedMapSource | DenseMapSource, sizes: Sequence[int]) -> list[StoredMap]:
        """Compress the maps of a batch, a block of rows at a time.

        Args:
            source: the teacher's rows.
            sizes: number of units of each pair; the others are padding.

        Returns:
            a dictionary for each pair, on the CPU. Both precisions: `present` `(units,)` bool. `exact`: `values`
            `(units, units)`. `8bit`: `codes` `(units, units)` uint8 and `step` `(units,)` float16; for pairs of more
            than `top_k` units `codes` holds only the kept ones, row by row, `mask` their positions as bits, and `rest`
            and `tail` `(units,)` are float16.
        """
        with torch.autocast(source.present.device.type, enabled=False):
            if self.precision == "exact":
                blocks = [upcast(source.rows(start, stop)).cpu() for start, stop in source.blocks()]
                stored = [{"values": values} for values in torch.cat(blocks, 1)]
            else:
                stored = _compact(source, self.top_k)
        present = source.present.cpu()
        return [
            self._cut({**one, "present": present[pair]}, size)
            for pair, (one, size) in enumerate(zip(stored, sizes, strict=True))
        ]

    def _cut(self, stored: StoredMap, size: int) -> StoredMap:
        """The map without padding and without the weights that were not kept."""
        square = ("values", "codes")
        stored = {
            name: (value[:size, :size] if name in square else value[:size]).contiguous()
            for name, value in stored.items()
        }
        if self.precision == "exact":
            return stored
        if self.top_k is None or size <= self.top_k:
            return {name: stored[name] for name in ("codes", "step", "present")}
        is_kept = stored["codes"] != NOT_KEPT
        stored["mask"] = torch.from_numpy(np.packbits(is_kept.numpy(), axis=1))
        stored["codes"] = stored["codes"][is_kept]
        return stored

    def expand(self, stored: Sequence[StoredMap], units: int, device: torch.device) -> MapSource:
        """The rows of a batch, from the stored maps of its pairs, padded to `units`."""
        present = torch.stack([_padded(one["present"], units, False) for one in stored]).to(device)
        if self.precision == "exact":
            values = torch.stack([_padded(one["values"], units, 0) for one in stored])
            return DenseMapSource(values.to(device), present)
        codes = torch.stack([_padded(_all_codes(one), units, NOT_KEPT) for one in stored])
        step, rest, tail = (
            torch.stack([_padded(one.get(name, torch.zeros(0)).float(), units, 0) for one in stored])
            for name in ("step", "rest", "tail")
        )
        return CompactRows(codes.to(device), step.to(device), rest.to(device), tail.to(device), present)


def _compact(source: RecordedMapSource | DenseMapSource, top_k: int | None) -> list[StoredMap]:
    """Codes of all columns, step and rest of each row, and the tail (see `CompactRows`)."""
    parts: list[tuple[torch.Tensor, ...]] = []
    dropped_mass, counts = torch.zeros(()), torch.zeros((), dtype=torch.long)
    for start, stop in source.blocks():
        rows = upcast(source.rows(start, stop))
        rows = rows.masked_fill(rows < torch.finfo(rows.dtype).tiny, 0)  # whose inverse would be infinite
        codes, step, is_kept = row_codes(rows, top_k)
        others = _to_sum(rows, 1).masked_fill(is_kept, 0)
        dropped_mass = dropped_mass + others.sum(1)
        counts = counts + (~is_kept & (rows.sum(-1, keepdim=True) > 0)).sum(1)
        parts.append((codes.cpu(), step.cpu(), others.sum(-1).half().cpu()))
    codes, step, rest = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    tail = dropped_mass / counts.clamp(min=1)
    tail = (tail / tail.amax(1, keepdim=True).clamp(min=torch.finfo(tail.dtype).tiny)).half().cpu()
    return [
        {"codes": codes[pair], "step": step[pair], "rest": rest[pair], "tail": tail[pair]}
        for pair in range(len(codes))
    ]


def row_codes(rows: torch.Tensor, top_k: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each weight as a number of steps below the largest of its row.

    Args:
        rows: `(..., columns)`, not negative.
        top_k: number of weights to keep per row; `None` for all. Weights of 0 are never kept.

    Returns:
        codes, `rows.shape`, uint8, `NOT_KEPT` where not kept; nats per step, `rows.shape[:-1]`, float16; whether each
        weight is kept, `rows.shape`, bool.
    """
    is_kept = rows > 0
    if top_k is not None and top_k < rows.shape[-1]:
        is_kept &= torch.zeros_like(is_kept).scatter_(-1, rows.topk(top_k).indices, True)
    largest = rows.amax(-1, keepdim=True)
    below = (largest.log() - rows.log()).masked_fill(~is_kept, 0).clamp(max=MAX_LOG_RANGE)
    step = (below.amax(-1, keepdim=True) / STEPS).half()
    codes = (below / step.to(rows.dtype)).nan_to_num(0.0).round().clamp(max=STEPS)
    return codes.masked_fill(~is_kept, NOT_KEPT).to(torch.uint8), step[..., 0], is_kept


def _to_sum(rows: torch.Tensor, total) -> torch.Tensor:
    """Rows scaled to the sum `total`; rows of zeros stay."""
    mass = rows.sum(-1, keepdim=True)
    return rows * (total / mass.masked_fill(mass == 0, 1))


def _all_codes(stored: StoredMap) -> torch.Tensor:
    if "mask" not in stored:
        return stored["codes"]
    size = len(stored["present"])
    is_kept = torch.from_numpy(np.unpackbits(stored["mask"].numpy(), axis=1, count=size)).bool()
    codes = torch.full((size, size), NOT_KEPT, dtype=torch.uint8)
    codes[is_kept] = stored["codes"]
    return codes


def _padded(tensor: torch.Tensor, units: int, value) -> torch.Tensor:
    """A vector or square matrix, padded to `units`."""
    result = tensor.new_full((units,) * tensor.dim(), value)
    result[tuple(slice(length) for length in tensor.shape)] = tensor
    return result
