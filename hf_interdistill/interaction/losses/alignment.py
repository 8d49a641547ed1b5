"""Alignment losses between the student's simulated map and the teacher's map.

Pure tensor code. Rows are probability distributions over units; each loss is a mean over rows, in nats for `kl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..attention.map_sources import Rows
from ..attention.maps import AttentionMap, as_computed
from .triton.dispatch import is_fused
from .triton.self_check import checked_sweep

ALIGNMENT_LOSSES = ("kl", "mse")
ALIGNMENT_SCOPES = ("joint", "intra", "inter")
ALIGNMENT_QUERIES = ("all", "response", "last")


def scope_mask(segments: torch.Tensor, start: int, stop: int, scope: str) -> torch.Tensor:
    """Which columns a row is compared on.

    `joint`: all. `intra`: the unit's own sequence (a response's unit: prompt and that response; a prompt's unit:
    everything, since it stands in both sequences). `inter`: the other response (a prompt's unit: nothing).

    Args:
        segments: `(batch, units)` 0 prompt, 1 chosen, 2 rejected, -1 padding.

    Returns:
        `(batch, stop - start, units)` bool.
    """
    rows, columns = segments[:, start:stop, None], segments[:, None, :]
    exists = (rows >= 0) & (columns >= 0)
    is_other = (rows >= 1) & (columns >= 1) & (rows != columns)
    if scope == "joint":
        return exists
    return exists & ~is_other if scope == "intra" else is_other


def query_mask(shared: torch.Tensor, segments: torch.Tensor, queries: str) -> torch.Tensor:
    """Which rows count.

    `all`: every unit's. `response`: those of both responses. `last`: that of each response's last unit, which stands
    nearest to where a causal model's reward is read.

    Args:
        shared: `(batch, units)` bool, units that both models have read.
        segments: `(batch, units)` 0 prompt, 1 chosen, 2 rejected, -1 padding; each in the order of its text.

    Returns:
        `(batch, units)` bool.
    """
    if queries == "all":
        return shared
    if queries == "response":
        return shared & (segments >= 1)
    result = torch.zeros_like(shared)
    for segment in (1, 2):
        own = shared & (segments == segment)
        result |= own & (own.flip(1).cumsum(1).flip(1) == 1)
    return result


def row_divergence(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, loss: str) -> torch.Tensor:
    """Divergence of each row, restricted to `mask` and renormalized: `(batch, rows)`, 0 where nothing is left.

    `kl`: `sum_v t_v log(t_v / s_v)`. `mse`: `sum_v (t_v - s_v)^2`, summed over columns so that its size does not fall
    with the length of the texts.

    Args:
        student, teacher: `(batch, rows, units)`, not negative.
        mask: `(batch, rows, units)` bool, the columns to compare on.
    """
    teacher, student = teacher * mask, student * mask
    mass = teacher.sum(-1, keepdim=True)
    teacher = teacher / mass.masked_fill(mass == 0, 1)
    # The least normal number: any weight above it is taken as it is, and the logarithm stays finite below.
    tiny = torch.finfo(student.dtype).tiny
    student_mass = student.sum(-1, keepdim=True).clamp(min=tiny)
    if loss == "kl":
        log_student = student.clamp(min=tiny).log() - student_mass.log()
        values = (torch.special.xlogy(teacher, teacher) - teacher * log_student.masked_fill(~mask, 0)).sum(-1)
    else:
        values = (teacher - student / student_mass).square().sum(-1)
    return values.masked_fill(mass[..., 0] == 0, 0)


@dataclass(frozen=True)
class AlignmentResult:
    """Losses of one layer pair, all scalars.

    Args:
        loss: of the scope asked for; the only one with a gradient.
        by_scope: each scope's loss, detached.
        aligned_pairs: `(batch,)` bool, pairs with a row that counts, of a unit that both models read.
    """

    loss: torch.Tensor
    by_scope: dict[str, torch.Tensor]
    aligned_pairs: torch.Tensor


@dataclass(frozen=True)
class _RowWeights:
    """Weight of each row in each scope, `(batch, units)`: a mean over the rows of a pair, then over pairs."""

    shared: torch.Tensor
    segments: torch.Tensor
    weights: dict[str, torch.Tensor]

    @classmethod
    def of(cls, shared: torch.Tensor, segments: torch.Tensor, dtype: torch.dtype, queries: str) -> _RowWeights:
        counted = query_mask(shared, segments, queries)
        has = {segment: (shared & (segments == segment)).any(1, keepdim=True) for segment in (1, 2)}
        rows = {
            "joint": counted,
            "intra": counted,
            "inter": counted & (((segments == 1) & has[2]) | ((segments == 2) & has[1])),
        }
        weights = {
            scope: row.to(dtype) / row.sum(1, keepdim=True).clamp(min=1) / row.shape[0] for scope, row in rows.items()
        }
        return cls(shared, segments, weights)

    def losses(self, student: torch.Tensor, teacher: torch.Tensor, start: int, loss: str, scope: str) -> torch.Tensor:
        stop = start + student.shape[1]
        mask = scope_mask(self.segments, start, stop, scope) & self.shared[:, None]
        values = row_divergence(student, teacher, mask, loss)
        return (values * self.weights[scope][:, start:stop]).sum()


def _torch_sweep(student: AttentionMap, teacher: Rows, rows: _RowWeights, loss: str, scope: str, needs_gradient: bool):
    """The loss in each scope `(3,)`, and the gradient of queries and keys for one of them, block by block."""
    totals = {name: student.query.new_zeros(()) for name in ALIGNMENT_SCOPES}
    query_gradient = torch.zeros_like(student.query) if needs_gradient else None
    key_gradient = torch.zeros_like(student.key) if needs_gradient else None
    for start, stop in student.blocks():
        block = student.attend(start, stop)
        pooled = student.pool(block, start, stop)
        target = as_computed(teacher.rows(start, stop)).to(pooled.dtype)
        with torch.enable_grad():
            leaf = pooled.detach().requires_grad_()
            value = rows.losses(leaf, target, start, loss, scope)
            gradient = torch.autograd.grad(value, leaf)[0] if needs_gradient else None
        totals[scope] += value.detach()
        for other in ALIGNMENT_SCOPES:
            if other != scope:
                totals[other] += rows.losses(pooled, target, start, loss, other)
        if needs_gradient:
            block_query, block_key = student.backward(block, gradient, start, stop)
            is_token = (block.local_units < stop - start)[:, None, :, None]
            places = block.tokens[:, None, :, None].expand_as(block_query)
            query_gradient.scatter_add_(2, places, block_query * is_token)
            key_gradient += block_key
    values = torch.stack([totals[name] for name in ALIGNMENT_SCOPES])
    return values, (query_gradient, key_gradient) if needs_gradient else None


class _Alignment(torch.autograd.Function):
    """The loss, with the gradient of queries and keys computed in the same sweep over blocks of rows.

    The loss is a scalar, so its gradient is known up to a factor when it is computed; keeping that gradient (as large
    as queries and keys) costs less than keeping or computing again the maps (as large as their square).
    """

    @staticmethod
    def forward(ctx, query, key, sweep, student: AttentionMap, teacher: Rows, rows: _RowWeights, loss, scope):
        needs_gradient = any(ctx.needs_input_grad[:2])
        values, gradients = sweep(student, teacher, rows, loss, scope, needs_gradient)
        if needs_gradient:
            ctx.save_for_backward(*gradients)
            ctx.dtypes = query.dtype, key.dtype
        ctx.mark_non_differentiable(values)
        return values[ALIGNMENT_SCOPES.index(scope)].clone(), values

    @staticmethod
    def backward(ctx, gradient, _):
        states = [(saved * gradient).to(dtype) for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return *states, *[None] * 6


def alignment_loss(
    student: AttentionMap,
    teacher: Rows,
    segments: torch.Tensor,
    *,
    loss: str = "kl",
    scope: str = "joint",
    queries: str = "all",
    kernel: str = "auto",
) -> AlignmentResult:
    """How far the student's simulated map is from the teacher's map.

    Source: after arXiv 2508.02618; the form is ours: `mean_rows KL(teacher row || student row)`, over the units that
    both models have read.

    Args:
        student: the simulated map (its queries and keys carry the gradient).
        teacher: the teacher's rows, on the same units.
        segments: `(batch, units)` 0 prompt, 1 chosen, 2 rejected, -1 padding.
        loss: `kl` (nats) or `mse`.
        scope: `joint`, `intra` or `inter`, see `scope_mask`.
        queries: `all`, `response` or `last`, see `query_mask`.
        kernel: `auto` (Triton kernels on a GPU where they can run), `torch` or `triton`, see `kernel_choice.is_fused`
            and `kernel_check`.

    Raises:
        ValueError: `kernel="triton"` where the kernels cannot run.

    Relations: `maps.student_map` makes the student's map, `InteractionTeacher.read` the teacher's rows.
    """
    shared = student.present & teacher.present.to(student.present.device) & (segments >= 0)
    rows = _RowWeights.of(shared, segments, torch.promote_types(student.states[0].dtype, torch.float32), queries)
    sweep = _torch_sweep
    if is_fused(kernel, student, "student"):
        sweep = checked_sweep(kernel, _torch_sweep)
    with torch.autocast(student.states[0].device.type, enabled=False):
        value, by_scope = _Alignment.apply(*student.states, sweep, student, teacher, rows, loss, scope)
    return AlignmentResult(
        loss=value,
        by_scope=dict(zip(ALIGNMENT_SCOPES, by_scope.unbind(), strict=True)),
        aligned_pairs=(rows.weights["joint"] > 0).any(1),
    )


def mean_alignment(results: Sequence[AlignmentResult]) -> AlignmentResult:
    """The mean over several layer pairs."""
    return AlignmentResult(
        loss=torch.stack([result.loss for result in results]).mean(),
        by_scope={
            scope: torch.stack([result.by_scope[scope] for result in results]).mean() for scope in ALIGNMENT_SCOPES
        },
        aligned_pairs=torch.stack([result.aligned_pairs for result in results]).any(0),
    )
