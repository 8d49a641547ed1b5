"""The alignment loss and its gradients in Triton, without any tensor of size heads x tokens x tokens.

For `N` content tokens, `h` heads of width `d`:

1. `log_sums` computes the softmax normalizer of each query, for all rows at once: `2 h d N^2` FLOPs, `h N` numbers.
2. The rows are processed in chunks. For each chunk `head_mean` recomputes the weights and averages them over heads in
   registers (`2 h d N^2` in all), `pool` pools them to units, and `row_losses` computes the losses and, in place, the
   gradient of the weights. `query_gradient` (`6 h d N^2` in all: scores for each row's inner product, scores and
   product for the gradient) and `key_gradient` (`4 h d N^2`) recompute the weights.

In total: `14 h d N^2` FLOPs on tensor cores (in torch: `6 h d N^2` in float32) and `5 h N^2` exponentials. Memory is
linear in `N`, since a chunk has `_CHUNK_ELEMENTS` weights or those of one unit. There are no atomic additions, so the
result is deterministic. A teacher's recorded layer is pooled in the same way, with `4 h d N^2` FLOPs.

Source: ours, after FlashAttention (arXiv 2205.14135), which tiles attention and recomputes it in the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...attention.map_sources import MapSource, RecordedMapSource
from ...attention.maps import AttentionMap, unit_ranges, upcast
from . import kernels, row_kernels
from .dispatch import is_interpreted, should_use_triton

_CHUNK_ELEMENTS = 1 << 22  # 16 MiB of float32: stays in the L2 cache of a data center GPU between two kernels
_POOL_COLUMNS = 128
_SCOPES = ("joint", "intra", "inter")  # the order in which `row_losses` computes them


@dataclass(frozen=True)
class Tiles:
    """Sizes of a kernel's tiles: query rows, key columns, warps."""

    rows: int
    columns: int
    warps: int


def choose_tiles(dtype: torch.dtype, width: int) -> Tiles:
    """Tiles that fit in the registers and shared memory of an A100 or H100, by dtype and padded head width."""
    if dtype == torch.float32:
        return Tiles(32, 32, 4)
    return Tiles(64, 32, 4) if width > 128 else Tiles(128, 64, 8)


class FusedMap:
    """An `AttentionMap` computed by kernels.

    Args:
        attention: a map for which `dispatch.unsupported_reason` is `None`.
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
        """Largest number of tokens of a pair in units `start` to `stop`."""
        return max(int((self.host_starts[:, stop] - self.host_starts[:, start]).max()), 1)

    def pooled(self, start: int, stop: int) -> torch.Tensor:
        """Rows of units `start` to `stop`, `(pairs, stop - start, units)`, float32."""
        chunk, stride = self._longest(start, stop), _tiles_in(self.length, 16) * 16
        weights = self.query.new_empty(self.pairs, chunk, stride, dtype=torch.float32)
        grid = (_tiles_in(chunk, self._tiles.rows), _tiles_in(self.length, self._tiles.columns), self.pairs)
        mean_sizes = (start, stop, self.units, self.content, self.length, chunk, stride)
        states = (self.query, self.key, self.key_mask, self._sums, self.starts)
        kernels.head_mean[grid](
            *states, weights, *self._scores, *mean_sizes, KV_HEADS=self.kv_heads, **self._constants
        )
        rows = weights.new_empty(self.pairs, stop - start, self.units)
        grid = (stop - start, _tiles_in(self.units, _POOL_COLUMNS), self.pairs)
        pool_sizes = (start, self.units, self.content, chunk, stride)
        row_kernels.pool[grid](weights, self.order, self.starts, rows, *pool_sizes, COLUMNS=_POOL_COLUMNS)
        return rows

    def add_gradients(self, gradient: torch.Tensor, result: _Gradients, start: int, stop: int) -> None:
        """Add the gradients of queries and keys, given the gradient of the weights of units `start` to `stop`."""
        arguments = (
            *(self.query, self.key, self.key_mask, self.key_units, self.row_units, self._sums, self.starts),
            *(gradient, result.inner),
        )
        sizes = (*self._scores, start, stop, self.units, self.content, self.length)
        is_half = self.query.dtype == torch.bfloat16  # gradients of weights can be 1e-9, below the range of float16
        constants = {**self._constants, "WIDEN_GRADIENT": not is_half}
        grid = (_tiles_in(self._longest(start, stop), self._tiles.rows), self.heads, self.pairs)
        kernels.query_gradient[grid](*arguments, result.query, *sizes, **constants)
        grid = (_tiles_in(self.length, self._tiles.columns), self.heads, self.pairs)
        kernels.key_gradient[grid](*arguments, result.key, *sizes, **constants)


class _Gradients:
    """Accumulated gradients of the queries, and of the keys per query head.

    They are below the range of float16 until the loss is scaled, so of the half precisions only bfloat16 is kept.
    """

    def __init__(self, student: FusedMap):
        pairs, heads, _, width = student.query.shape
        self._dtype = torch.bfloat16 if student.query.dtype == torch.bfloat16 else torch.float32
        self.query = torch.zeros_like(student.query, dtype=self._dtype)
        self.key = student.query.new_zeros(pairs, heads, student.length, width, dtype=torch.float32)
        self.inner = student.query.new_zeros(pairs, heads, student.content, dtype=torch.float32)
        self._groups = heads // student.kv_heads

    def of_states(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients in the shapes of queries and keys."""
        return self.query, self.key.unflatten(1, (-1, self._groups)).sum(2).to(self._dtype)


class _FusedMapSource:
    """The map of a teacher's recorded layer, computed by kernels."""

    def __init__(self, source: RecordedMapSource):
        self._map, self.present = FusedMap(source.map), source.present

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self._map.pooled(start, stop)


def fused_loss_and_gradients(
    kernel: str, student: AttentionMap, teacher: MapSource, weights, loss: str, scope: str, needs_gradient: bool
):
    """The measures of each scope, and the gradients of the loss of one scope.

    Args:
        kernel: as in `alignment_loss`; it also applies to the map of a teacher's recorded layer.
        student, teacher: the maps.
        weights: row weights.
        loss: `kl` or `mse`.
        scope: scope of the gradients.
        needs_gradient: whether to compute gradients.

    Returns:
        `(3, scopes)` measures as in `alignment.torch_loss_and_gradients`, for `joint`, `intra`, `inter`; gradients of
        queries and keys, or `None`.
    """
    with torch.cuda.device_of(student.states[0]):
        if isinstance(teacher, RecordedMapSource) and should_use_triton(kernel, teacher.map, "teacher"):
            teacher = _FusedMapSource(teacher)
        own = FusedMap(student)
        gradients = _Gradients(own) if needs_gradient else None
        values = own.starts.new_zeros(3, len(_SCOPES), own.pairs, own.units, dtype=torch.float32)
        columns = max(16, 1 << (own.units - 1).bit_length())
        constants = {
            "SCOPE": _SCOPES.index(scope),
            "IS_KL": loss == "kl",
            "NEEDS_GRADIENT": needs_gradient,
            "COLUMNS": columns,
            "num_warps": min(
                max(columns // 512, 4), 32
            ),  # at most 16 elements of each tensor per thread: no register spills
        }
        row_weights = torch.stack([weights.weights[name] for name in _SCOPES]).float()
        shared = weights.shared.contiguous().view(torch.uint8)
        unit_arguments = (weights.segments.int(), shared, row_weights, student.tokens.sizes.int())
        budget = max(1, _CHUNK_ELEMENTS // max(1, own.pairs * own.length))
        for start, stop in unit_ranges(own.host_starts, budget):
            rows = own.pooled(start, stop)
            target = upcast(teacher.rows(start, stop)).float().contiguous()
            sizes = (start, own.units, own.heads)
            row_kernels.row_losses[(stop - start, own.pairs)](
                rows, target, *unit_arguments, values, *sizes, **constants
            )
            if gradients is not None:
                own.add_gradients(rows, gradients, start, stop)
        return values.sum((2, 3)), None if gradients is None else gradients.of_states()


def _tiles_in(count: int, size: int) -> int:
    return -(-count // size)


def _product_precision(dtype: torch.dtype) -> str:
    """Precision of products of float32 operands on tensor cores.

    For float32 states: the setting of torch's own matrix products. If TF32 is off, three TF32 products are used, which
    have almost the precision of float32 (not available on AMD). For float16 states, whose score gradients are float32:
    TF32, which represents every float16 exactly and has the range of float32.
    """
    matmul = torch.backends.cuda.matmul
    setting = matmul.fp32_precision if hasattr(matmul, "fp32_precision") else ("tf32" if matmul.allow_tf32 else "ieee")
    if torch.version.hip is not None:
        return "ieee"
    return "tf32" if dtype != torch.float32 or setting == "tf32" else "tf32x3"
