"""Which alignments the Triton kernels compute, and why not the others."""

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
_WIDEST_HEAD = {torch.float32: 128, torch.bfloat16: 256, torch.float16: 256}  # wider ones overflow the registers
_MOST_UNITS = 1 << 14  # a row of units is held in the registers of one program


def is_interpreted() -> bool:
    """Whether Triton runs kernels as Python, on the CPU (to test them)."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


@lru_cache(maxsize=1)
def _missing_software() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it comes with torch's builds for CUDA, or as `hf_interdistill[triton]`)"
    if not is_interpreted() and not os.environ.get("CC") and not (shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler, but neither gcc nor clang is installed and `CC` is not set"
    return None


def device_obstacle(device: torch.device) -> str | None:
    """Why no kernel can run on a device, or `None`."""
    if device.type != "cuda" and not (device.type == "cpu" and is_interpreted()):
        return f"queries and keys are on {device.type}, not on a CUDA device"
    if device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    return _missing_software()


def obstacle(attention: AttentionMap) -> str | None:
    """Why the kernels cannot compute a map, or `None` if they can."""
    query, key = attention.states
    if query.dtype not in _WIDEST_HEAD or key.dtype != query.dtype:
        return f"queries are {query.dtype} and keys {key.dtype}, not both float32, bfloat16 or float16"
    if query.shape[-1] > _WIDEST_HEAD[query.dtype]:
        return f"heads are {query.shape[-1]} wide, more than {_WIDEST_HEAD[query.dtype]} in {query.dtype}"
    if attention.units > _MOST_UNITS:
        return f"there are {attention.units} units, more than {_MOST_UNITS}"
    return device_obstacle(query.device)


def is_fused(kernel: str, attention: AttentionMap, whose: str) -> bool:
    """Whether the kernels compute a map.

    Args:
        kernel: `triton`: they must; `torch`: they do not; `auto`: they do on a GPU where they can, and a note in the
            log says once why not.
        whose: `student` or `teacher`, for the message.

    Raises:
        ValueError: `triton` where the kernels cannot run, or a choice that does not exist.
    """
    if kernel not in ALIGNMENT_KERNELS:
        raise ValueError(f"`alignment_kernel` is {kernel!r}, but must be one of {', '.join(ALIGNMENT_KERNELS)}.")
    if kernel == "torch":
        return False
    reason = obstacle(attention)
    if kernel == "triton":
        refuse(reason)
    elif reason is None and attention.states[0].device.type != "cuda":
        reason = "Triton's interpreter is for tests"
    if reason is not None:
        _note(f"The {whose}'s map is computed in torch, a few rows at a time (`alignment_kernel`): {reason}.")
    return reason is None


def require_device(kernel: str, device: torch.device) -> None:
    """Raise `ValueError` for `triton` on a device where no kernel can run."""
    if kernel == "triton":
        refuse(device_obstacle(device))


def refuse(reason: str | None) -> None:
    """Raise `ValueError` for `triton` if there is a reason why the kernels cannot run."""
    if reason is not None:
        raise ValueError(
            f"`alignment_kernel` is 'triton', but the kernels cannot run here: {reason}. Set `alignment_kernel` to "
            "'auto' or 'torch'."
        )


@lru_cache(maxsize=64)
def _note(message: str) -> None:
    logger.info(message)
