"""Alignment losses between the student's simulated map and the teacher's map.

Pure tensor code. Each row is a probability distribution over units; each loss is a mean over rows, in nats for `kl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..attention.map_sources import MapSource
from ..attention.maps import AttentionMap, upcast
from .triton.dispatch import should_use_triton
from .triton.self_check import with_self_check

ALIGNMENT_LOSSES = ("kl", "mse")
ALIGNMENT_SCOPES = ("joint", "intra", "inter")
UNIFORM_NATS = 1e-5  # a teacher's row nearer to uniform is uniform up to rounding


def scope_mask(segments: torch.Tensor, start: int, stop: int, scope: str) -> torch.Tensor:
    """The columns on which each row is compared.

    `joint`: all columns. `intra`: the unit's own sequence (for a unit of a response: the prompt and that response; for
    a unit of the prompt: all columns, since it is part of both sequences). `inter`: the other response (for a unit of
    the prompt: no column).

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


def shared_units(student: AttentionMap, teacher: MapSource, segments: torch.Tensor) -> torch.Tensor:
    """Units that both models have read, `(batch, units)` bool; `segments` as in `scope_mask`."""
    return student.present & teacher.present.to(student.present.device) & (segments >= 0)


def row_divergence(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, loss: str) -> torch.Tensor:
    """Divergence of each row, restricted to `mask` and renormalized: `(batch, rows)`, 0 for rows without mass.

    `kl`: `sum_v t_v log(t_v / s_v)`. `mse`: `sum_v (t_v - s_v)^2`, a sum over columns so that it does not shrink as
    texts get longer.

    Args:
        student, teacher: `(batch, rows, units)`, not negative.
        mask: `(batch, rows, units)` bool, the columns to compare on.
        loss: `kl` or `mse`.
    """
    teacher, student = teacher * mask, student * mask
    mass = teacher.sum(-1, keepdim=True)
    teacher = teacher / mass.masked_fill(mass == 0, 1)
    # The smallest normal number: it keeps the logarithm finite and changes no weight above it.
    tiny = torch.finfo(student.dtype).tiny
    student_mass = student.sum(-1, keepdim=True).clamp(min=tiny)
    if loss == "kl":
        log_student = student.clamp(min=tiny).log() - student_mass.log()
        values = (torch.special.xlogy(teacher, teacher) - teacher * log_student.masked_fill(~mask, 0)).sum(-1)
    else:
        values = (teacher - student / student_mass).square().sum(-1)
    return values.masked_fill(mass[..., 0] == 0, 0)


def uniform_divergence(teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """KL of each row from equal attention to the columns of `mask`, in nats; arguments as in `row_divergence`."""
    teacher = teacher * mask
    mass = teacher.sum(-1)
    teacher = teacher / mass.masked_fill(mass == 0, 1)[..., None]
    values = torch.special.xlogy(teacher, teacher).sum(-1) + mask.sum(-1).clamp(min=1).to(teacher.dtype).log()
    return values.masked_fill(mass == 0, 0)


@dataclass(frozen=True)
class AlignmentResult:
    """Losses of one layer pair.

    Args:
        loss: scalar loss of the requested scope; the only one with a gradient.
        by_scope: scalar loss of each scope, detached.
        divergences: `(2, scopes)` KL(teacher, student) and KL(teacher, uniform) in nats whatever the loss, detached,
            in the order of `ALIGNMENT_SCOPES`. The same means as of the loss, but rows in which the teacher is uniform
            count 0 in both: see `explained.ExplainedShare`.
        aligned_pairs: `(batch,)` bool, pairs with at least one row in the loss.
    """

    loss: torch.Tensor
    by_scope: dict[str, torch.Tensor]
    divergences: torch.Tensor
    aligned_pairs: torch.Tensor


@dataclass(frozen=True)
class RowWeights:
    """Weight of each row in each scope: the loss is a mean over the rows of a pair, then over pairs.

    Args:
        shared: `(batch, units)` bool, units that both models have read.
        segments: `(batch, units)`, as in `scope_mask`.
        weights: by scope, `(batch, units)`.
    """

    shared: torch.Tensor
    segments: torch.Tensor
    weights: dict[str, torch.Tensor]

    @classmethod
    def from_units(
        cls, shared: torch.Tensor, segments: torch.Tensor, dtype: torch.dtype, query_mask: torch.Tensor | None
    ) -> RowWeights:
        """Equal weights for the rows of `shared` that are also in `query_mask`."""
        counted = shared if query_mask is None else shared & query_mask
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

    def measures(
        self, student: torch.Tensor, teacher: torch.Tensor, start: int, loss: str, scope: str
    ) -> torch.Tensor:
        """Weighted sums over rows `start` onwards; `student` and `teacher` are `(batch, rows, units)`.

        Returns:
            `(3,)`: the loss; KL(teacher, student) and KL(teacher, uniform) over the rows whose teacher is not uniform.
        """
        stop = start + student.shape[1]
        mask = scope_mask(self.segments, start, stop, scope) & self.shared[:, None]
        values = row_divergence(student, teacher, mask, loss)
        kl = (values if loss == "kl" else row_divergence(student, teacher, mask, "kl")).detach()
        uniform = uniform_divergence(teacher, mask)
        is_uniform = uniform <= UNIFORM_NATS
        measures = torch.stack([values, kl.masked_fill(is_uniform, 0), uniform.masked_fill(is_uniform, 0)])
        return (measures * self.weights[scope][:, start:stop]).sum((1, 2))


def torch_loss_and_gradients(
    student: AttentionMap, teacher: MapSource, rows: RowWeights, loss: str, scope: str, needs_gradient: bool
):
    """The measures of each scope and the gradients of the loss of one scope, a block of rows at a time.

    Returns:
        `(3, scopes)` measures of `RowWeights.measures` in the order of `ALIGNMENT_SCOPES`; gradients of queries and
        keys, or `None`.
    """
    totals = {name: student.query.new_zeros(3) for name in ALIGNMENT_SCOPES}
    gradients = (torch.zeros_like(student.query), torch.zeros_like(student.key)) if needs_gradient else None
    for start, stop in student.blocks():
        block = student.attend(start, stop)
        pooled = student.pool(block, start, stop)
        target = upcast(teacher.rows(start, stop)).to(pooled.dtype)
        with torch.enable_grad():
            leaf = pooled.detach().requires_grad_()
            measures = rows.measures(leaf, target, start, loss, scope)
            value = measures[0]
        totals[scope] += measures.detach()
        for other in ALIGNMENT_SCOPES:
            if other != scope:
                totals[other] += rows.measures(pooled, target, start, loss, other)
        if gradients is not None:
            (pooled_gradient,) = torch.autograd.grad(value, leaf)
            block_query, block_key = student.backward(block, pooled_gradient, start, stop)
            is_token = (block.local_units < stop - start)[:, None, :, None]
            token_index = block.tokens[:, None, :, None].expand_as(block_query)
            gradients[0].scatter_add_(2, token_index, block_query * is_token)
            gradients[1].add_(block_key)
    return torch.stack([totals[name] for name in ALIGNMENT_SCOPES], 1), gradients


class _Alignment(torch.autograd.Function):
    """The loss, with the gradients of queries and keys computed in the forward pass.

    The loss is a scalar, so the backward pass only scales these gradients. Storing them (the size of queries and keys)
    costs less than storing or recomputing the maps (quadratic in the number of units).
    """

    @staticmethod
    def forward(ctx, query, key, compute, student: AttentionMap, teacher: MapSource, rows: RowWeights, loss, scope):
        needs_gradient = any(ctx.needs_input_grad[:2])
        measures, gradients = compute(student, teacher, rows, loss, scope, needs_gradient)
        if needs_gradient:
            ctx.save_for_backward(*gradients)
            ctx.dtypes = query.dtype, key.dtype
        ctx.mark_non_differentiable(measures)
        return measures[0, ALIGNMENT_SCOPES.index(scope)].clone(), measures

    @staticmethod
    def backward(ctx, gradient, _):
        states = [(saved * gradient).to(dtype) for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return *states, *[None] * 6


def alignment_loss(
    student: AttentionMap,
    teacher: MapSource,
    segments: torch.Tensor,
    *,
    loss: str = "kl",
    scope: str = "joint",
    query_mask: torch.Tensor | None = None,
    kernel: str = "auto",
) -> AlignmentResult:
    """Divergence of the student's simulated map from the teacher's map.

    Source: after arXiv 2508.02618; the form is ours: `mean_rows KL(teacher row || student row)`, over the units that
    both models have read.

    Args:
        student: the simulated map; gradients flow to its queries and keys.
        teacher: the teacher's map on the same units.
        segments: `(batch, units)` 0 prompt, 1 chosen, 2 rejected, -1 padding.
        loss: `kl` (nats) or `mse`.
        scope: `joint`, `intra` or `inter`, see `scope_mask`.
        query_mask: `(batch, units)` bool, units whose rows are compared; all by default.
        kernel: `auto` (Triton kernels on a GPU that supports them), `torch` or `triton`, see
            `triton.dispatch.should_use_triton` and `triton.self_check`.

    Raises:
        ValueError: `kernel` is unknown, or is `triton` where the kernels cannot run.

    Relations: `maps.student_map` builds the student's map, `InteractionTeacher.forward` the teacher's.
    """
    shared = shared_units(student, teacher, segments)
    dtype = torch.promote_types(student.states[0].dtype, torch.float32)
    rows = RowWeights.from_units(shared, segments, dtype, query_mask)
    compute = torch_loss_and_gradients
    if should_use_triton(kernel, student, "student"):
        compute = with_self_check(kernel, torch_loss_and_gradients)
    with torch.autocast(student.states[0].device.type, enabled=False):
        value, measures = _Alignment.apply(*student.states, compute, student, teacher, rows, loss, scope)
    return AlignmentResult(
        loss=value,
        by_scope=dict(zip(ALIGNMENT_SCOPES, measures[0].unbind(), strict=True)),
        divergences=measures[1:],
        aligned_pairs=(rows.weights["joint"] > 0).any(1),
    )


def mean_alignment(results: Sequence[AlignmentResult]) -> AlignmentResult:
    """The mean over layer pairs."""
    return AlignmentResult(
        loss=torch.stack([result.loss for result in results]).mean(),
        by_scope={
            scope: torch.stack([result.by_scope[scope] for result in results]).mean() for scope in ALIGNMENT_SCOPES
        },
        divergences=torch.stack([result.divergences for result in results]).mean(0),
        aligned_pairs=torch.stack([result.aligned_pairs for result in results]).any(0),
    )
