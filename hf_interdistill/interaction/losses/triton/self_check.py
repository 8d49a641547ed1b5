"""The first batch that the kernels compute is computed in torch too, and compared.

A kernel is compiled for the GPU, driver and Triton that are there, and a wrong one does not raise: it trains a worse
model. So each kind (precision, head width, cap, loss, scope, with gradient or without) is checked once a process, at
the cost of one alignment.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch

from ...attention.maps import AttentionMap
from .dispatch import refuse

logger = logging.getLogger(__name__)

# Wide enough for rounding (products of bfloat16 or TF32), narrow enough for anything wrong.
_VALUE_TOLERANCE, _GRADIENT_TOLERANCE = 0.01, 0.05

_verdicts: dict[tuple, str | None] = {}


def checked_sweep(kernel: str, in_torch: Callable) -> Callable:
    """What computes the loss and its gradient: the kernels, once they have agreed with `in_torch`, else `in_torch`.

    With `kernel="triton"` a disagreement is a `ValueError`, with `auto` a warning.
    """
    return partial(_sweep, kernel, in_torch)


def _sweep(kernel: str, in_torch: Callable, student: AttentionMap, *rest):
    from .fused import fused_sweep  # imports Triton

    query = student.states[0]
    _, _, *compiled_for = rest  # loss, scope, and whether a gradient is wanted
    kind = (query.device, query.dtype, query.shape[-1], student.softcap is None, *compiled_for)
    if kind not in _verdicts:
        result, reason = _compare(partial(fused_sweep, kernel), in_torch, student, *rest)
        if kernel == "triton":
            refuse(reason)
        _verdicts[kind] = reason
        if reason is not None:
            logger.warning(f"The alignment is computed in torch: {reason}. Please report this, with {_versions()}.")
        return result
    if _verdicts[kind] is not None:
        return in_torch(student, *rest)
    return fused_sweep(kernel, student, *rest)


def _compare(fused: Callable, in_torch: Callable, *arguments):
    """The result in torch, and what is wrong with that of the kernels (`None`: nothing)."""
    from triton.errors import TritonError

    expected = in_torch(*arguments)
    try:
        found = fused(*arguments)
    except TritonError as error:
        return expected, f"Triton could not run a kernel ({type(error).__name__}: {error})"
    values, wanted = found[0], expected[0].float()
    if not torch.allclose(values, wanted, rtol=_VALUE_TOLERANCE, atol=1e-4):
        return expected, f"the kernels' losses {values.tolist()} are not torch's {wanted.tolist()}"
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
