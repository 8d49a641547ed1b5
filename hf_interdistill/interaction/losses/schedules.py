"""Schedules of the alignment weight: each maps training progress in [0, 1] to a factor in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable

ALIGNMENT_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear_decay": lambda progress: 1.0 - progress,
    "cosine_decay": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "warmup": lambda progress: min(1.0, 10.0 * progress),  # full weight after the first tenth
}


def scheduled_weight(weight: float, schedule: str, step: int, max_steps: int) -> float:
    """The alignment weight at `step`: `weight` times the factor of `schedule`.

    Args:
        max_steps: steps of the run; if unknown (not positive), the progress stays 0.
    """
    progress = min(max(step / max_steps, 0.0), 1.0) if max_steps > 0 else 0.0
    return weight * ALIGNMENT_SCHEDULES[schedule](progress)
