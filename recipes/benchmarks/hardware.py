"""What the figures were measured on, and where they are kept."""

from __future__ import annotations

import json
import os
import platform
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


def keep(results: list[dict], path: Path) -> None:
    """Merge results into a JSON list: a figure measured again replaces the earlier one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    fresh = {(result["name"], result["setting"]) for result in results}
    kept = [result for result in earlier if (result["name"], result["setting"]) not in fresh]
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(kept + results, indent=2), encoding="utf-8")
    os.replace(scratch, path)
