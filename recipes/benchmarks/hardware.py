"""What the figures were measured on, and the memory of a process."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import torch


def describe_hardware() -> str:
    """Processor, cores in use, and versions."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name(0)
    else:
        names = [line for line in _cpuinfo() if line.startswith("model name")]
        device = names[0].split(":")[1].strip() if names else platform.processor() or platform.machine()
        device = f"{device}, {torch.get_num_threads()} threads"
    return f"{device}; torch {torch.__version__}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def peak_resident_mib() -> float:
    """Peak resident size of this process. Not `ru_maxrss` where it can be had: that starts at the parent's size."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
