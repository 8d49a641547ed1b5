# ruff: noqa: N803 (constants of a kernel have names in capitals)
"""Triton kernels on rows of units: pooling of attention weights, and row losses with their gradients.

Relations: `kernels` has the attention; `fused` launches both and describes the algorithm.
"""

from __future__ import annotations

import triton
import triton.language as tl

TINY = tl.constexpr(1.1754943508222875e-38)  # the smallest normal number of float32
UNIFORM_NATS = tl.constexpr(1e-5)  # as in `alignment`


@triton.jit
def pool(weights, order, starts, result, first_unit, units, content, chunk, stride, COLUMNS: tl.constexpr):
    """Pool token weights to units: mean over the queries of a unit, sum over the keys of a unit.

    Args:
        weights: `(pairs, chunk, stride)` of `head_mean`.
        result: `(pairs, rows of units, units)`.
    """
    row, pair = tl.program_id(0), tl.program_id(2).to(tl.int64)
    starts += pair * (units + 1)
    chunk_start = tl.load(starts + first_unit)
    first = tl.load(starts + first_unit + row)
    last = tl.load(starts + first_unit + row + 1)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    key_starts = tl.load(starts + columns, mask=columns < units, other=0)
    sizes = tl.load(starts + columns + 1, mask=columns < units, other=0) - key_starts
    weights += (pair * chunk + first - chunk_start) * stride
    total = tl.zeros([COLUMNS], tl.float32)
    for step in range(0, tl.max(sizes, 0)):
        inside = step < sizes
        token_index = tl.load(order + pair * content + key_starts + step, mask=inside, other=0)
        for token in range(0, last - first):
            total += tl.load(weights + token * stride + token_index, mask=inside, other=0.0)
    result += (pair * tl.num_programs(0) + row) * units
    tl.store(result + columns, total / tl.maximum(last - first, 1), mask=columns < units)


@triton.jit
def _divergence(student, teacher, mask, IS_KL: tl.constexpr):
    """Divergence of a row on the columns of `mask`, and its gradient with respect to `student`."""
    teacher = tl.where(mask, teacher, 0.0)
    student = tl.where(mask, student, 0.0)
    mass = tl.sum(teacher, 0)
    teacher = teacher / tl.where(mass == 0.0, 1.0, mass)
    own_mass = tl.sum(student, 0)
    is_normal = own_mass >= TINY  # below it mass and weights are clamped to a constant, whose gradient is 0
    own_mass = tl.maximum(own_mass, TINY)
    if IS_KL:
        floored = tl.maximum(student, TINY)
        log_teacher = tl.log(tl.where(teacher > 0.0, teacher, 1.0))
        value = tl.sum(tl.where(mask, teacher * (log_teacher - tl.log(floored) + tl.log(own_mass)), 0.0), 0)
        slope = tl.where(student >= TINY, -teacher / floored, 0.0)
        slope += tl.where(is_normal, tl.sum(teacher, 0) / own_mass, 0.0)
    else:
        share = student / own_mass
        rest = teacher - share
        value = tl.sum(rest * rest, 0)
        slope = 2.0 / own_mass * (tl.where(is_normal, tl.sum(rest * share, 0), 0.0) - rest)
    is_counted = tl.where(mass > 0.0, 1.0, 0.0)
    return value * is_counted, tl.where(mask, slope * is_counted, 0.0)


@triton.jit
def _uniform_divergence(teacher, mask):
    """KL of a row from equal attention to the columns of `mask`."""
    teacher = tl.where(mask, teacher, 0.0)
    mass = tl.sum(teacher, 0)
    teacher = teacher / tl.where(mass == 0.0, 1.0, mass)
    columns = tl.maximum(tl.sum(tl.where(mask, 1.0, 0.0), 0), 1.0)
    value = tl.sum(teacher * tl.log(tl.where(teacher > 0.0, teacher, 1.0)), 0) + tl.log(columns)
    return tl.where(mass > 0.0, value, 0.0)


@triton.jit
def row_losses(
    student, teacher, segments, shared, row_weights, sizes, values, first_unit, units, heads,
    SCOPE: tl.constexpr, IS_KL: tl.constexpr, NEEDS_GRADIENT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Weighted measures of each row in each scope, and the gradient of the attention weights.

    Args:
        student, teacher: `(pairs, rows, units)`; the gradient for scope number `SCOPE` overwrites `student`.
        row_weights: `(scopes, pairs, units)`.
        values: `(3, scopes, pairs, units)`, as `RowWeights.measures`.
    """
    row, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    pairs, unit = tl.num_programs(1), first_unit + row
    columns = tl.arange(0, COLUMNS)
    inside = columns < units
    offsets = (pair * tl.num_programs(0) + row) * units + columns
    student_row = tl.load(student + offsets, mask=inside, other=0.0)
    teacher_row = tl.load(teacher + offsets, mask=inside, other=0.0)
    segment = tl.load(segments + pair * units + unit)
    others = tl.load(segments + pair * units + columns, mask=inside, other=-1)
    is_shared = tl.load(shared + pair * units + columns, mask=inside, other=0) != 0
    kept = is_shared & (others >= 0) & (segment >= 0)
    is_other = (segment >= 1) & (others >= 1) & (others != segment)
    gradient = tl.zeros([COLUMNS], tl.float32)
    for scope in tl.static_range(3):  # in the order of ALIGNMENT_SCOPES
        if scope == 0:
            mask = kept
        elif scope == 1:
            mask = kept & (is_other == 0)
        else:
            mask = kept & is_other
        value, slope = _divergence(student_row, teacher_row, mask, IS_KL)
        scope_offset = (scope * pairs + pair) * units + unit
        weight = tl.load(row_weights + scope_offset)
        if IS_KL:
            kl = value
        else:
            kl, _ = _divergence(student_row, teacher_row, mask, True)
        uniform = _uniform_divergence(teacher_row, mask)
        is_uniform = uniform <= UNIFORM_NATS
        tl.store(values + scope_offset, value * weight)
        tl.store(values + scope_offset + 3 * pairs * units, tl.where(is_uniform, 0.0, kl) * weight)
        tl.store(values + scope_offset + 6 * pairs * units, tl.where(is_uniform, 0.0, uniform) * weight)
        if scope == SCOPE:
            gradient += slope * weight
    if NEEDS_GRADIENT:
        tokens = tl.maximum(tl.load(sizes + pair * units + unit), 1)
        tl.store(student + offsets, gradient / (tokens * heads), mask=inside)
