"""Decides whether the Triton kernels compute an alignment, and gives the reason if they do not."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from functools import lru_cache

import torch

from ...attention.maps import AttentionMap

logger = logging.getLogger(__name__)

ALIGNMENT_KERNELS = ("auto", "torch", "triton")
_MAX_HEAD_DIM = {
    torch.float32: 128,
    torch.bfloat16: 256,
    torch.float16: 256,
}  # wider heads do not fit in the registers
_MAX_UNITS = 1 << 14  # one program holds a row of units in registers


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


@lru_cache(maxsize=1)
def _missing_software() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it comes with torch's builds for CUDA, or as `hf_interdistill[triton]`)"
    if not is_interpreted() and not os.environ.get("CC") and not (shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler, but neither gcc nor clang is installed and `CC` is not set"
    return None


def device_unsupported_reason(device: torch.device) -> str | None:
    """Why no kernel can run on a device; `None` if kernels can."""
    if device.type != "cuda" and not (device.type == "cpu" and is_interpreted()):
        return f"queries and keys are on {device.type}, not on a CUDA device"
    if device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    return _missing_software()


def unsupported_reason(attention: AttentionMap) -> str | None:
    """Why the kernels cannot compute a map; `None` if they can."""
    query, key = attention.states
    if query.dtype not in _MAX_HEAD_DIM or key.dtype != query.dtype:
        return f"queries are {query.dtype} and keys {key.dtype}, not both float32, bfloat16 or float16"
    if query.shape[-1] > _MAX_HEAD_DIM[query.dtype]:
        return f"heads are {query.shape[-1]} wide, more than {_MAX_HEAD_DIM[query.dtype]} in {query.dtype}"
    if attention.units > _MAX_UNITS:
        return f"there are {attention.units} units, more than {_MAX_UNITS}"
    return device_unsupported_reason(query.device)


def should_use_triton(kernel: str, attention: AttentionMap, whose: str) -> bool:
    """Whether the Triton kernels compute a map.

    Args:
        kernel: `triton` requires them; `torch` never uses them; `auto` uses them on a GPU that supports them, and
            otherwise logs the reason once.
        attention: the map.
        whose: `student` or `teacher`, for the log.

    Raises:
        ValueError: `kernel` is unknown, or is `triton` where the kernels cannot run.
    """
    if kernel not in ALIGNMENT_KERNELS:
        raise ValueError(f"`alignment_kernel` is {kernel!r}, but must be one of {', '.join(ALIGNMENT_KERNELS)}.")
    if kernel == "torch":
        return False
    reason = unsupported_reason(attention)
    if kernel == "triton":
        raise_if_unsupported(reason)
    elif reason is None and attention.states[0].device.type != "cuda":
        reason = "Triton's interpreter is for tests only"
    if reason is not None:
        _log_once(f"The {whose}'s map is computed in torch, a block of rows at a time (`alignment_kernel`): {reason}.")
    return reason is None


def require_device(kernel: str, device: torch.device) -> None:
    """Raise `ValueError` if `kernel` is `triton` and no kernel can run on the device."""
    if kernel == "triton":
        raise_if_unsupported(device_unsupported_reason(device))


def raise_if_unsupported(reason: str | None) -> None:
    """Raise `ValueError` if there is a reason why the kernels cannot run."""
    if reason is not None:
        raise ValueError(
            f"`alignment_kernel` is 'triton', but the kernels cannot run here: {reason}. Set `alignment_kernel` to "
            "'auto' or 'torch'."
        )


@lru_cache(maxsize=64)
def _log_once(message: str) -> None:
    logger.info(message)
