"""Interaction-distilled reward models for the Hugging Face ecosystem.

Names are loaded when used, so that `import hf_interdistill` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

_MODULES = {
    "InteractionDistillationConfig": "interaction.config",
    "InteractionDistillationTrainer": "interaction.trainer",
    "InteractionTeacher": "interaction.teacher",
    "InteractionTeacherConfig": "interaction.teacher_training",
    "RewardScorer": "scoring.scorer",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str):
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(sorted(_MODULES))}")


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from .interaction.config import InteractionDistillationConfig
    from .interaction.teacher import InteractionTeacher
    from .interaction.teacher_training import InteractionTeacherConfig
    from .interaction.trainer import InteractionDistillationTrainer
    from .scoring.scorer import RewardScorer
