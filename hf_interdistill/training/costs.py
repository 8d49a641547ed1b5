"""The resources that a training used."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def peak_memory() -> dict[str, int | str]:
    """The most memory of this process so far.

    Returns:
        `peak_memory_bytes`, and `peak_memory_of`: `GPU` (what torch allocated on the GPU, if it used one) or `process`
        (its resident set). Nothing on systems that do not tell.
    """
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(), "peak_memory_of": "GPU"}
    largest = _largest_resident_set()
    return {} if largest is None else {"peak_memory_bytes": largest, "peak_memory_of": "process"}


def _largest_resident_set() -> int | None:
    """Bytes. `getrusage` on Linux would count the process that started this one, too."""
    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # on Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest
