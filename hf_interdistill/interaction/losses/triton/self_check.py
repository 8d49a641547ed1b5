"""Compares the Triton kernels with torch on the first batch.

A kernel is compiled for the installed GPU, driver and Triton version. A wrong result raises no error; it trains a
worse model. Each configuration (device, dtype, head width, soft cap, loss, scope, gradient) is therefore checked once
per process, at the cost of one alignment in torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch

from ...attention.maps import AttentionMap
from .dispatch import raise_if_unsupported

logger = logging.getLogger(__name__)

# Larger than the rounding of bfloat16 or TF32 products, smaller than the effect of a wrong kernel.
_VALUE_TOLERANCE, _GRADIENT_TOLERANCE = 0.01, 0.05

_check_results: dict[tuple, str | None] = {}  # by configuration: why the kernels are not used, or None


def with_self_check(kernel: str, reference: Callable) -> Callable:
    """The kernels' `fused_loss_and_gradients`, replaced by `reference` where a check against it fails.

    Args:
        kernel: `triton` raises `ValueError` if a check fails; `auto` logs a warning and uses `reference`.
        reference: the same function in torch.
    """
    return partial(_compute, kernel, reference)


def _compute(kernel: str, reference: Callable, student: AttentionMap, *rest):
    from .fused import fused_loss_and_gradients  # imports Triton

    query = student.states[0]
    _, _, *options = rest  # loss, scope, needs_gradient
    configuration = (query.device, query.dtype, query.shape[-1], student.softcap is None, *options)
    if configuration not in _check_results:
        result, reason = _compare(partial(fused_loss_and_gradients, kernel), reference, student, *rest)
        if kernel == "triton":
            raise_if_unsupported(reason)
        _check_results[configuration] = reason
        if reason is not None:
            logger.warning(f"The alignment is computed in torch: {reason}. Please report this, with {_versions()}.")
        return result
    if _check_results[configuration] is not None:
        return reference(student, *rest)
    return fused_loss_and_gradients(kernel, student, *rest)


def _compare(fused: Callable, reference: Callable, *arguments):
    """The result in torch, and how the kernels' result differs from it; `None` if they agree."""
    from triton.errors import TritonError

    expected = reference(*arguments)
    try:
        found = fused(*arguments)
    except TritonError as error:
        return expected, f"Triton could not run a kernel ({type(error).__name__}: {error})"
    values, wanted = found[0], expected[0].float()
    if not torch.allclose(values, wanted, rtol=_VALUE_TOLERANCE, atol=1e-4):
        return expected, f"the kernels' losses {values.tolist()} differ from torch's {wanted.tolist()}"
    for name, own, other in zip(("queries", "keys"), found[1] or (), expected[1] or (), strict=False):
        difference, size = (own.float() - other.float()).norm(), other.float().norm()
        if not difference <= _GRADIENT_TOLERANCE * size + 1e-12:
            return (
                expected,
                f"the kernels' gradient of the {name} differs by {float(difference / size):.3g} from torch's",
            )
    return expected, None


def _versions() -> str:
    import triton

    return f"torch {torch.__version__} and Triton {triton.__version__}"
