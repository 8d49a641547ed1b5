"""Token-interaction maps pooled to units: which unit attends to which, as rows of probabilities.

Pure tensor code: knows no model, no tokenizer, no trainer. A map has one row per unit. A row is the attention of the
unit's tokens to each unit: the mean over heads and over the unit's query tokens, the sum over the key tokens of each
unit. Maps are computed a block of rows at a time, so no tensor of size `heads x length x length` is ever in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from .recorder import RecordedAttention

# Elements of one block of attention weights (batch x heads x query rows x keys): small enough for the cache of a CPU,
# large enough to keep a GPU busy.
_BLOCK_ELEMENTS = {"cpu": 1 << 21, "other": 1 << 26}


def upcast(tensor: torch.Tensor) -> torch.Tensor:
    """To float32; float64 stays. Softmax, logarithm and divergence are never computed in half precision."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@dataclass(frozen=True)
class UnitTokens:
    """The tokens of each unit, for a batch of rows.

    Args:
        order: `(batch, content)` positions of the content tokens, sorted by unit; 0 for padding.
        units: `(batch, content)` unit of each content token; -1 for padding.
        key_units: `(batch, length)` unit of every token; -1 for tokens of no unit.
        key_mask: `(batch, length)` bool, tokens that can be attended to.
        starts: `(batch, units + 1)` on the CPU: the tokens of unit `u` are `order[starts[u]:starts[u + 1]]`.
    """

    order: torch.Tensor
    units: torch.Tensor
    key_units: torch.Tensor
    key_mask: torch.Tensor
    starts: torch.Tensor

    @classmethod
    def from_units(cls, units: torch.Tensor, key_mask: torch.Tensor, count: int) -> UnitTokens:
        """Build from the unit of every token.

        Args:
            units: `(batch, length)`, -1 for tokens of no unit.
            key_mask: `(batch, length)` bool, tokens that can be attended to.
            count: number of units.
        """
        sortable = torch.where(units < 0, count, units)
        order = sortable.argsort(dim=1, stable=True)
        sizes = torch.zeros(units.shape[0], count + 1, dtype=torch.long, device=units.device)
        sizes.scatter_add_(1, sortable, torch.ones_like(units))
        starts = torch.nn.functional.pad(sizes[:, :-1].cumsum(1), (1, 0)).cpu()
        content = max(int(starts[:, -1].max()), 1)
        key_mask = key_mask | ~key_mask.any(1, keepdim=True)  # a row without keys would give 0/0; its loss is masked
        order = order[:, :content]
        sorted_units = units.gather(1, order)
        return cls(order.masked_fill(sorted_units < 0, 0), sorted_units, units, key_mask, starts)

    @cached_property
    def device_starts(self) -> torch.Tensor:
        """`starts` as int32 on the device of the other tensors."""
        return self.starts.int().to(self.units.device)

    @cached_property
    def sizes(self) -> torch.Tensor:
        """Tokens in each unit, `(batch, units)`."""
        return self.starts.diff(dim=1).to(self.units.device)


@dataclass(frozen=True)
class AttentionBlock:
    """Attention of a range of query tokens to all keys, with what the gradient needs.

    Args:
        weights: `(batch, kv_heads, groups, queries, keys)` softmax weights.
        tokens: `(batch, queries)` index of each query among the sorted content tokens.
        local_units: `(batch, queries)` unit of each query, counted from the block's first unit; `stop - start` for
            padding.
        query: `(batch, kv_heads, groups * queries, head_dim)`.
        capped: the soft-capped scores; `None` without a soft cap.
    """

    weights: torch.Tensor
    tokens: torch.Tensor
    local_units: torch.Tensor
    query: torch.Tensor
    capped: torch.Tensor | None


class AttentionMap:
    """The pooled map of one recorded layer.

    Args:
        query: `(batch, heads, content, head_dim)`, tokens sorted by unit.
        key: `(batch, kv_heads, length, head_dim)`, `heads` a multiple of `kv_heads`.
        tokens: the units of the queries and keys.
        scaling, softcap: as in `RecordedAttention`.

    `states` holds query and key in their own dtype; `query` and `key` are upcast.
    """

    def __init__(self, query, key, tokens: UnitTokens, scaling: float, softcap: float | None):
        self.states, self.tokens = (query, key), tokens
        self.scaling, self.softcap = scaling, softcap
        self.units = tokens.starts.shape[1] - 1
        self.present = tokens.sizes > 0

    @cached_property
    def query(self) -> torch.Tensor:
        return upcast(self.states[0])

    @cached_property
    def key(self) -> torch.Tensor:
        return upcast(self.states[1])

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
        """Ranges of units, from `start` to `stop`, whose attention weights fit in one block."""
        batch, heads = self.states[0].shape[:2]
        budget = _BLOCK_ELEMENTS["cpu" if self.states[0].device.type == "cpu" else "other"]
        rows = max(1, budget // max(1, batch * heads * self.states[1].shape[2]))
        return unit_ranges(self.tokens.starts, rows, start, stop)

    def attend(self, start: int, stop: int) -> AttentionBlock:
        """Softmax attention of the tokens of units `start` to `stop`."""
        device = self.query.device
        first = self.tokens.starts[:, start]
        lengths = self.tokens.starts[:, stop] - first
        steps = torch.arange(max(int(lengths.max()), 1))
        is_token = (steps < lengths[:, None]).to(device)
        positions = (first[:, None] + steps).clamp(max=self.query.shape[2] - 1).to(device)
        batch, heads, _, width = self.query.shape
        kv_heads = self.key.shape[1]
        query = self.query.gather(2, positions[:, None, :, None].expand(-1, heads, -1, width))
        query = query.reshape(batch, kv_heads, -1, width)
        scores, capped = self._scores(query)
        weights = torch.softmax(scores, dim=-1).view(batch, kv_heads, heads // kv_heads, positions.shape[1], -1)
        local = (self.tokens.units.gather(1, positions) - start).masked_fill(~is_token, stop - start)
        return AttentionBlock(weights, positions, local, query, capped)

    def _scores(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores with -inf for masked keys, and the soft-capped scores without the mask."""
        query, key = query.flatten(0, 1), self.key.flatten(0, 1)
        bias = torch.zeros_like(self.tokens.key_mask, dtype=query.dtype)
        bias = bias.masked_fill_(~self.tokens.key_mask, float("-inf"))[:, None]
        bias = bias.repeat_interleave(self.key.shape[1], dim=0)
        if self.softcap is None:  # scaling and mask are part of the matrix product: one pass over the block
            return torch.baddbmm(bias, query, key.transpose(1, 2), alpha=self.scaling), None
        scores = torch.bmm(query, key.transpose(1, 2)).mul_(self.scaling / self.softcap)
        capped = scores.tanh_().mul_(self.softcap)
        return capped + bias, capped.unflatten(0, self.key.shape[:2])

    def pool(self, block: AttentionBlock, start: int, stop: int) -> torch.Tensor:
        """Rows of the map, `(batch, stop - start, units)`, from the attention weights of their tokens."""
        by_token = block.weights.mean((1, 2))
        by_key_unit = pool_columns(by_token, self.tokens.key_units, self.units)
        sums = by_key_unit.new_zeros(by_key_unit.shape[0], stop - start + 1, self.units)
        sums.scatter_add_(1, block.local_units[..., None].expand_as(by_key_unit), by_key_unit)
        return sums[:, :-1] / self.tokens.sizes[:, start:stop, None].clamp(min=1)

    def backward(self, block: AttentionBlock, gradient: torch.Tensor, start: int, stop: int):
        """Gradients of one block.

        Args:
            gradient: gradient of the pooled rows, `(batch, stop - start, units)`.

        Returns:
            the gradient of the block's queries, `(batch, heads, queries, head_dim)`, and the gradient of all keys, in
            the shape of `key`.
        """
        heads = self.query.shape[1]
        gradient = gradient / (self.tokens.sizes[:, start:stop, None].clamp(min=1) * heads)
        gradient = torch.nn.functional.pad(gradient, (0, 1, 0, 1))  # a column and a row for tokens of no unit
        rows = gradient.gather(1, block.local_units[..., None].expand(-1, -1, gradient.shape[2]))
        columns = torch.where(self.tokens.key_units < 0, self.units, self.tokens.key_units)
        by_token = rows.gather(2, columns[:, None].expand(-1, rows.shape[1], -1))[:, None, None]
        weights = block.weights
        inner = torch.einsum("bhgqk,bqk->bhgq", weights, by_token[:, 0, 0])
        scores = (by_token - inner[..., None]).mul_(weights).flatten(2, 3)
        if block.capped is not None and self.softcap is not None:
            scores.mul_(1 - (block.capped / self.softcap).square_())
        scores.mul_(self.scaling)
        query = torch.matmul(scores, self.key).view(self.query.shape[0], heads, -1, self.query.shape[-1])
        return query, torch.matmul(scores.transpose(2, 3), block.query)


def unit_ranges(starts: torch.Tensor, rows: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
    """Ranges of units with at most `rows` tokens per batch row; a longer unit gets a range of its own.

    Args:
        starts: `(batch, units + 1)`, as in `UnitTokens`.
        start, stop: the units to divide; all by default.
    """
    offsets = starts.numpy()
    last = offsets.shape[1] - 1 if stop is None else stop
    while start < last:
        end = start + 1
        while end < last and (offsets[:, end + 1] - offsets[:, start]).max() <= rows:
            end += 1
        yield start, end
        start = end


def pool_columns(weights: torch.Tensor, key_units: torch.Tensor, units: int) -> torch.Tensor:
    """Sum attention over the key tokens of each unit: `(batch, queries, keys)` to `(batch, queries, units)`."""
    columns = torch.where(key_units < 0, units, key_units)[:, None].expand(-1, weights.shape[1], -1)
    sums = weights.new_zeros(*weights.shape[:2], units + 1)
    return sums.scatter_add_(2, columns, weights)[..., :-1]


def pool_attention(weights: torch.Tensor, token_units: torch.Tensor, units: int) -> torch.Tensor:
    """A map from attention weights: `(batch, length, length)` to `(batch, units, units)`."""
    by_key_unit = pool_columns(weights, token_units, units)
    rows = torch.where(token_units < 0, units, token_units)
    sums = by_key_unit.new_zeros(by_key_unit.shape[0], units + 1, units)
    sums.scatter_add_(1, rows[..., None].expand_as(by_key_unit), by_key_unit)
    sizes = torch.zeros(rows.shape[0], units + 1, device=rows.device, dtype=sums.dtype)
    sizes.scatter_add_(1, rows, torch.ones_like(rows, dtype=sums.dtype))
    return sums[:, :-1] / sizes[:, :-1, None].clamp(min=1)


def teacher_map(record: RecordedAttention, tokens: UnitTokens) -> AttentionMap:
    """The map of a bidirectional layer: softmax over all tokens, content tokens as rows and columns."""
    batch, heads, _, width = record.query.shape
    order = tokens.order[:, None, :, None].expand(batch, heads, -1, width)
    return AttentionMap(record.query.gather(2, order), record.key, tokens, record.scaling, record.softcap)


def concatenate_rows(record: RecordedAttention, pairs: int | None = None) -> RecordedAttention:
    """Concatenate the two rows of each pair: `(2 * pairs, heads, length, ...)` to `(pairs, heads, 2 * length, ...)`.

    Args:
        record: attention of a batch with the chosen rows in its first half and the rejected rows in its second half.
        pairs: number of pairs; rows of further responses, behind those of the pairs, are left out.
    """
    rows = None if pairs is None else 2 * pairs
    query, key = (torch.cat(states[:rows].chunk(2), dim=2) for states in (record.query, record.key))
    return replace(record, query=query, key=key)


def student_map(record: RecordedAttention, index: torch.Tensor, tokens: UnitTokens) -> AttentionMap:
    """The simulated map of a causal reward model: no causal mask, content of prompt and both responses together.

    Source: arXiv 2508.02618 (the idea); the form is ours: `softmax([Qx;Qc;Qr] [Kx;Kc;Kr]^T * scaling)`.

    Args:
        record: one row per pair, either from `concatenate_rows` or from a pass over packed pairs.
        index: `(pairs, content)` position of each content token in that row, sorted by unit. Prompt tokens appear
            once: a causal model has the same states for them in both passes.
        tokens: units of the tokens in `index`.
    """

    def content(states: torch.Tensor) -> torch.Tensor:
        return states.gather(2, index[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))

    return AttentionMap(content(record.query), content(record.key), tokens, record.scaling, record.softcap)
