# ruff: noqa: N803 (constants of a kernel have names in capitals)
"""Triton attention kernels of the alignment: attention weights exist only in registers, as tiles of queries x keys.

Requires Triton (part of torch's CUDA builds). `fused` launches them and describes the algorithm. In all kernels:

- grid `(tiles, heads or tiles, pairs)`; queries and keys `(pairs, heads, tokens, WIDTH)`, contiguous.
- scores are base-2 logarithms, so a weight is one `exp2`; sums and products accumulate in float32.
- `starts` is `(pairs, units + 1)`: the tokens of unit `u` are `starts[u]` to `starts[u + 1]`. A launch processes the
  rows of the units `first_unit` to `last_unit`.
- `WIDEN` makes products take float32 operands. It is set where half precision would underflow (float16 gradients) and
  under Triton's interpreter, which has no bfloat16 products.

Relations: `row_kernels` has pooling and the row losses.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _dot(left, right, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    if WIDEN:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, input_precision=PRECISION)


@triton.jit
def _load_states(states, token_index, count, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Queries or keys of one head at `token_index`; 0 from token `count` and beyond the head width."""
    columns = tl.arange(0, PADDED)
    inside = (token_index[:, None] < count) & (columns[None, :] < WIDTH)
    return tl.load(states + token_index[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store_states(result, states, token_index, count, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    columns = tl.arange(0, PADDED)
    inside = (token_index[:, None] < count) & (columns[None, :] < WIDTH)
    offsets = token_index[:, None] * WIDTH + columns[None, :]
    tl.store(result + offsets, states.to(result.dtype.element_ty), mask=inside)


@triton.jit
def _scores(query, key, scaling, softcap, CAPPED: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """Scores as base-2 logarithms: `(queries, keys)` from `(queries, PADDED)` and `(keys, PADDED)`."""
    products = _dot(query, tl.trans(key), PRECISION, WIDEN)
    if CAPPED:
        bounded = 1.0 - 2.0 / (tl.exp2(products * (2.0 * LOG2_E * scaling / softcap)) + 1.0)  # tanh
        return bounded * (softcap * LOG2_E)
    else:
        return products * (scaling * LOG2_E)


@triton.jit
def _slope(scores, scaling, softcap, CAPPED: tl.constexpr):
    """Derivative of the scores (in nats) with respect to the product of query and key."""
    if CAPPED:
        bounded = scores / (softcap * LOG2_E)
        return scaling * (1.0 - bounded * bounded)
    else:
        return scaling


@triton.jit
def _weight_gradients(
    states, keys, log_sum, gradient, local_units, is_row, key_units, is_key, units, scaling, softcap,
    CAPPED: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """A tile of attention weights, their gradients (0 for keys of no unit), and the slope of the scores."""
    scores = _scores(states, keys, scaling, softcap, CAPPED, PRECISION, WIDEN)
    is_pair = is_row[:, None] & is_key[None, :]
    weights = tl.where(is_pair, tl.exp2(scores - log_sum[:, None]), 0.0)
    offsets = local_units[:, None] * units + key_units[None, :]
    gradients = tl.load(gradient + offsets, mask=is_pair & (key_units[None, :] >= 0), other=0.0)
    return weights, gradients, _slope(scores, scaling, softcap, CAPPED)


@triton.jit
def _load_keys(key_mask, key_units, columns, length):
    """Mask and units of some keys; unit -1 for keys of no unit."""
    inside = columns < length
    return tl.load(key_mask + columns, mask=inside, other=0) != 0, tl.load(key_units + columns, mask=inside, other=-1)


@triton.jit
def log_sums(
    query, key, key_mask, result, scaling, softcap, content, length,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CAPPED: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """log2 of the sum of `exp2(score)` over the keys: `result` `(pairs, heads, content)`."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    pair = tl.program_id(2).to(tl.int64)
    head = pair * tl.num_programs(1) + tl.program_id(1)
    states = _load_states(query + head * content * WIDTH, rows, content, WIDTH, PADDED)
    key += head // GROUPS * length * WIDTH
    largest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        is_key = tl.load(key_mask + pair * length + columns, mask=columns < length, other=0) != 0
        keys = _load_states(key, columns, length, WIDTH, PADDED)
        scores = _scores(states, keys, scaling, softcap, CAPPED, PRECISION, WIDEN)
        scores = tl.where(is_key[None, :], scores, -float("inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        base = tl.where(larger == -float("inf"), 0.0, larger)  # no key so far: avoids inf - inf
        total = total * tl.exp2(largest - base) + tl.sum(tl.exp2(scores - base[:, None]), 1)
        largest = larger
    tl.store(result + head * content + rows, largest + tl.log2(total), mask=rows < content)


@triton.jit
def head_mean(
    query, key, key_mask, sums, starts, result, scaling, softcap, first_unit, last_unit, units, content, length,
    chunk, stride, KV_HEADS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Attention weights of the tokens of some units, mean over heads: `result` `(pairs, chunk, stride)`."""
    pair = tl.program_id(2).to(tl.int64)
    first = tl.load(starts + pair * (units + 1) + first_unit)
    last = tl.load(starts + pair * (units + 1) + last_unit)
    rows = first + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_key = tl.load(key_mask + pair * length + columns, mask=columns < length, other=0) != 0
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for kv_head in range(KV_HEADS):
        keys = _load_states(key + (pair * KV_HEADS + kv_head) * length * WIDTH, columns, length, WIDTH, PADDED)
        for group in range(GROUPS):
            head = (pair * KV_HEADS + kv_head) * GROUPS + group
            states = _load_states(query + head * content * WIDTH, rows, last, WIDTH, PADDED)
            scores = _scores(states, keys, scaling, softcap, CAPPED, PRECISION, WIDEN)
            log_sum = tl.load(sums + head * content + rows, mask=rows < last, other=0.0)
            total += tl.where(is_key[None, :], tl.exp2(scores - log_sum[:, None]), 0.0)
    offsets = (pair * chunk + rows - first)[:, None] * stride + columns[None, :]
    inside = (rows < last)[:, None] & (columns < length)[None, :]
    tl.store(result + offsets, total / (KV_HEADS * GROUPS), mask=inside)


@triton.jit
def query_gradient(
    query, key, key_mask, key_units, row_units, sums, starts, gradient, inner, result, scaling, softcap,
    first_unit, last_unit, units, content, length, GROUPS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    WIDEN_GRADIENT: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries of some units' tokens, and `inner`: each row's `sum_j weight_j gradient_j`.

    Args:
        gradient: `(pairs, last_unit - first_unit, units)` of `row_losses`.
        inner: `(pairs, heads, content)`. result: the shape of `query`.
    """
    pair = tl.program_id(2).to(tl.int64)
    head = pair * tl.num_programs(1) + tl.program_id(1)
    first = tl.load(starts + pair * (units + 1) + first_unit) + tl.program_id(0) * ROWS
    last = tl.load(starts + pair * (units + 1) + last_unit)
    if first >= last:
        return
    rows = first + tl.arange(0, ROWS)
    is_row = rows < last
    states = _load_states(query + head * content * WIDTH, rows, last, WIDTH, PADDED)
    log_sum = tl.load(sums + head * content + rows, mask=is_row, other=0.0)
    local_units = tl.load(row_units + pair * content + rows, mask=is_row, other=first_unit) - first_unit
    gradient += pair * (last_unit - first_unit) * units
    key += head // GROUPS * length * WIDTH
    key_mask += pair * length
    key_units += pair * length
    row_inner = tl.zeros([ROWS], tl.float32)
    for start in range(0, length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        is_key, unit = _load_keys(key_mask, key_units, columns, length)
        keys = _load_states(key, columns, length, WIDTH, PADDED)
        weights, gradients, _ = _weight_gradients(
            states, keys, log_sum, gradient, local_units, is_row, unit, is_key, units, scaling, softcap,
            CAPPED, PRECISION, WIDEN,
        )  # fmt: skip
        row_inner += tl.sum(weights * gradients, 1)
    tl.store(inner + head * content + rows, row_inner, mask=is_row)
    total = tl.zeros([ROWS, PADDED], tl.float32)
    for start in range(0, length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        is_key, unit = _load_keys(key_mask, key_units, columns, length)
        keys = _load_states(key, columns, length, WIDTH, PADDED)
        weights, gradients, slope = _weight_gradients(
            states, keys, log_sum, gradient, local_units, is_row, unit, is_key, units, scaling, softcap,
            CAPPED, PRECISION, WIDEN,
        )  # fmt: skip
        score_gradients = weights * (gradients - row_inner[:, None]) * slope
        if not WIDEN_GRADIENT:
            score_gradients = score_gradients.to(keys.dtype)
        total += _dot(score_gradients, keys, PRECISION, WIDEN or WIDEN_GRADIENT)
    _store_states(result + head * content * WIDTH, total, rows, last, WIDTH, PADDED)


@triton.jit
def key_gradient(
    query, key, key_mask, key_units, row_units, sums, starts, gradient, inner, result, scaling, softcap,
    first_unit, last_unit, units, content, length, GROUPS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    WIDEN_GRADIENT: tl.constexpr,
):  # fmt: skip
    """Adds the gradient of the keys, from the rows of some units, to `result` `(pairs, heads, length, WIDTH)`."""
    pair = tl.program_id(2).to(tl.int64)
    head = pair * tl.num_programs(1) + tl.program_id(1)
    first = tl.load(starts + pair * (units + 1) + first_unit)
    last = tl.load(starts + pair * (units + 1) + last_unit)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    is_key, unit = _load_keys(key_mask + pair * length, key_units + pair * length, columns, length)
    keys = _load_states(key + head // GROUPS * length * WIDTH, columns, length, WIDTH, PADDED)
    query += head * content * WIDTH
    gradient += pair * (last_unit - first_unit) * units
    result += head * length * WIDTH
    total = _load_states(result, columns, length, WIDTH, PADDED)
    for start in range(first, last, ROWS):
        rows = start + tl.arange(0, ROWS)
        is_row = rows < last
        states = _load_states(query, rows, last, WIDTH, PADDED)
        log_sum = tl.load(sums + head * content + rows, mask=is_row, other=0.0)
        row_inner = tl.load(inner + head * content + rows, mask=is_row, other=0.0)
        local_units = tl.load(row_units + pair * content + rows, mask=is_row, other=first_unit) - first_unit
        weights, gradients, slope = _weight_gradients(
            states, keys, log_sum, gradient, local_units, is_row, unit, is_key, units, scaling, softcap,
            CAPPED, PRECISION, WIDEN,
        )  # fmt: skip
        score_gradients = weights * (gradients - row_inner[:, None]) * slope
        if not WIDEN_GRADIENT:
            score_gradients = score_gradients.to(states.dtype)
        total += _dot(tl.trans(score_gradients), states, PRECISION, WIDEN or WIDEN_GRADIENT)
    _store_states(result, total, columns, length, WIDTH, PADDED)
