"""The alignment loss and its gradient by Triton kernels: nothing of size heads x tokens x tokens, forward or backward.

For `N` content tokens, `h` heads of width `d`:

1. `log_sums`: each query's softmax sum, for all rows at once. `2 h d N^2` FLOPs, `h N` numbers kept.
2. Rows of units in chunks. For each chunk `head_mean` computes the weights again and adds them over heads in registers
   (`2 h d N^2` in all), `pool` makes rows of units, `row_losses` turns these into losses and, in place, into the
   gradient of the weights; `query_gradient` (`6 h d N^2` in all: scores for each row's inner sum, scores and product
   for the gradient) and `key_gradient` (`4 h d N^2`) compute the weights again.

So `14 h d N^2` FLOPs on tensor cores (the path in torch: `6 h d N^2` in float32), `5 h N^2` exponentials, and memory
linear in `N`: a chunk has `_CHUNK_ELEMENTS` weights, or those of one unit. No atomic additions: the same batch gives
the same bits. A teacher's recorded layer is pooled in the same way, `4 h d N^2` FLOPs.

Source: ours, after FlashAttention (arXiv 2205.14135), which tiles attention and computes it again in backward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...attention.map_sources import RecordedRows, Rows
from ...attention.maps import AttentionMap, as_computed, unit_ranges
from . import kernels, row_kernels
from .dispatch import is_fused, is_interpreted

_CHUNK_ELEMENTS = 1 << 22  # 16 MiB of float32: stays in a data center GPU's second-level cache between two kernels
_POOL_COLUMNS = 128
_SCOPES = ("joint", "intra", "inter")  # the order in which `row_losses` computes them


@dataclass(frozen=True)
class Tiles:
    """Sizes of a kernel's tiles: query rows, key columns, warps."""

    rows: int
    columns: int
    warps: int


def choose_tiles(dtype: torch.dtype, width: int) -> Tiles:
    """What fits the registers and shared memory of an A100 or H100, by element size and padded head width."""
    if dtype == torch.float32:
        return Tiles(32, 32, 4)
    return Tiles(64, 32, 4) if width > 128 else Tiles(128, 64, 8)


class FusedMap:
    """An `AttentionMap` by kernels.

    Args:
        attention: with queries and keys for which `kernel_choice.obstacle` finds none.
    """

    def __init__(self, attention: AttentionMap):
        self.query, self.key = (states.detach().contiguous() for states in attention.states)
        tokens = attention.tokens
        self.units = attention.units
        self.host_starts = tokens.starts
        self.starts = tokens.device_starts
        self.order = tokens.order.int()
        self.row_units, self.key_units = tokens.units.int(), tokens.key_units.int()
        self.key_mask = tokens.key_mask.contiguous().view(torch.uint8)
        self.pairs, self.heads, self.content, self.width = self.query.shape
        self.kv_heads, self.length = self.key.shape[1:3]
        self._scores = (attention.scaling, 1.0 if attention.softcap is None else attention.softcap)
        self._tiles = choose_tiles(self.query.dtype, self.width)
        self._constants = self._constant_arguments(attention.softcap is not None)
        self._sums = self._log_sums()

    def _constant_arguments(self, is_capped: bool) -> dict:
        return {
            "GROUPS": self.heads // self.kv_heads,
            "WIDTH": self.width,
            "PADDED": max(16, 1 << (self.width - 1).bit_length()),
            "ROWS": self._tiles.rows,
            "COLUMNS": self._tiles.columns,
            "CAPPED": is_capped,
            "PRECISION": _product_precision(self.query.dtype),
            "WIDEN": is_interpreted() and self.query.dtype == torch.bfloat16,
            "num_warps": self._tiles.warps,
        }

    def _log_sums(self) -> torch.Tensor:
        sums = self.query.new_empty(self.pairs, self.heads, self.content, dtype=torch.float32)
        grid = (_tiles_in(self.content, self._tiles.rows), self.heads, self.pairs)
        kernels.log_sums[grid](
            self.query, self.key, self.key_mask, sums, *self._scores, self.content, self.length, **self._constants
        )
        return sums

    def _longest(self, start: int, stop: int) -> int:
        """Most tokens that a pair has in units `start` to `stop`."""
        return max(int((self.host_starts[:, stop] - self.host_starts[:, start]).max()), 1)

    def pooled(self, start: int, stop: int) -> torch.Tensor:
        """Rows of units `start` to `stop`, `(pairs, stop - start, units)`, float32."""
        chunk, stride = self._longest(start, stop), _tiles_in(self.length, 16) * 16
        weights = self.query.new_empty(self.pairs, chunk, stride, dtype=torch.float32)
        grid = (_tiles_in(chunk, self._tiles.rows), _tiles_in(self.length, self._tiles.columns), self.pairs)
        sizes = (start, stop, self.units, self.content, self.length, chunk, stride)
        states = (self.query, self.key, self.key_mask, self._sums, self.starts)
        kernels.head_mean[grid](*states, weights, *self._scores, *sizes, KV_HEADS=self.kv_heads, **self._constants)
        rows = weights.new_empty(self.pairs, stop - start, self.units)
        grid = (stop - start, _tiles_in(self.units, _POOL_COLUMNS), self.pairs)
        sizes = (start, self.units, self.content, chunk, stride)
        row_kernels.pool[grid](weights, self.order, self.starts, rows, *sizes, COLUMNS=_POOL_COLUMNS)
        return rows

    def add_gradients(self, gradient: torch.Tensor, result: _Gradients, start: int, stop: int) -> None:
        """Of the queries and keys, from that of the weights of units `start` to `stop`."""
        arguments = (
            *(self.query, self.key, self.key_mask, self.key_units, self.row_units, self._sums, self.starts),
            *(gradient, result.inner),
        )
        sizes = (*self._scores, start, stop, self.units, self.content, self.length)
        is_half = self.query.dtype == torch.bfloat16  # float16 has not the range: gradients of weights may be 1e-9
        constants = {**self._constants, "WIDEN_GRADIENT": not is_half}
        grid = (_tiles_in(self._longest(start, stop), self._tiles.rows), self.heads, self.pairs)
        kernels.query_gradient[grid](*arguments, result.query, *sizes, **constants)
        grid = (_tiles_in(self.length, self._tiles.columns), self.heads, self.pairs)
        kernels.key_gradient[grid](*arguments, result.key, *sizes, **constants)


class _Gradients:
    """Gradients being added up: of the queries, and of the keys for each query head.

    Float16 has not their range before the loss is scaled, so only bfloat16 is kept as it is.
    """

    def __init__(self, student: FusedMap):
        pairs, heads, _, width = student.query.shape
        self._dtype = torch.bfloat16 if student.query.dtype == torch.bfloat16 else torch.float32
        self.query = torch.zeros_like(student.query, dtype=self._dtype)
        self.key = student.query.new_zeros(pairs, heads, student.length, width, dtype=torch.float32)
        self.inner = student.query.new_zeros(pairs, heads, student.content, dtype=torch.float32)
        self._groups = heads // student.kv_heads

    def of_states(self) -> tuple[torch.Tensor, torch.Tensor]:
        """In the shapes of queries and keys."""
        return self.query, self.key.unflatten(1, (-1, self._groups)).sum(2).to(self._dtype)


class _FusedRows:
    """Rows of a teacher's recorded layer by kernels."""

    def __init__(self, source: RecordedRows):
        self._map, self.present = FusedMap(source.map), source.present

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self._map.pooled(start, stop)


def fused_sweep(
    kernel: str, student: AttentionMap, teacher: Rows, weights, loss: str, scope: str, needs_gradient: bool
):
    """The loss in each scope, and the gradient for one of them.

    Args:
        kernel: the choice, for a teacher's recorded layer; other rows are what they are.
        student, teacher: the maps.
        weights: `losses._RowWeights`.
        loss: `kl` or `mse`. scope: whose gradient is wanted.

    Returns:
        `(3,)` losses for `joint`, `intra`, `inter`; gradients of queries and keys, or `None`.
    """
    with torch.cuda.device_of(student.states[0]):
        if isinstance(teacher, RecordedRows) and is_fused(kernel, teacher.map, "teacher"):
            teacher = _FusedRows(teacher)
        own = FusedMap(student)
        gradients = _Gradients(own) if needs_gradient else None
        values = own.starts.new_zeros(3, own.pairs, own.units, dtype=torch.float32)
        columns = max(16, 1 << (own.units - 1).bit_length())
        constants = {
            "SCOPE": _SCOPES.index(scope),
            "IS_KL": loss == "kl",
            "NEEDS_GRADIENT": needs_gradient,
            "COLUMNS": columns,
            "num_warps": min(max(columns // 512, 4), 32),  # at most 16 numbers of each kind a thread: no spills
        }
        row_weights = torch.stack([weights.weights[name] for name in _SCOPES]).float()
        of_units = (weights.segments.int(), weights.shared.contiguous().view(torch.uint8), row_weights)
        of_units = (*of_units, student.tokens.sizes.int())
        budget = max(1, _CHUNK_ELEMENTS // max(1, own.pairs * own.length))
        for start, stop in unit_ranges(own.host_starts, budget):
            rows = own.pooled(start, stop)
            target = as_computed(teacher.rows(start, stop)).float().contiguous()
            sizes = (start, own.units, own.heads)
            row_kernels.row_losses[(stop - start, own.pairs)](rows, target, *of_units, values, *sizes, **constants)
            if needs_gradient:
                own.add_gradients(rows, gradients, start, stop)
        states = gradients.of_states() if needs_gradient else None
        return values.sum((1, 2)), states


def _tiles_in(count: int, size: int) -> int:
    return -(-count // size)


def _product_precision(dtype: torch.dtype) -> str:
    """Of products of float32 operands on tensor cores.

    For float32 states what torch's own matrix products are set to; where TF32 is off, three products of TF32, which
    have nearly the bits of float32 (AMD's compiler has no such thing). For float16, whose score gradients are float32:
    TF32 holds every float16, and has its ten bits with the range of float32.
    """
    matmul = torch.backends.cuda.matmul
    setting = matmul.fp32_precision if hasattr(matmul, "fp32_precision") else ("tf32" if matmul.allow_tf32 else "ieee")
    if torch.version.hip is not None:
        return "ieee"
    return "tf32" if dtype != torch.float32 or setting == "tf32" else "tf32x3"
