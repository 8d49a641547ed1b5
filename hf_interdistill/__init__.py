"""Interaction-distilled reward models for the Hugging Face ecosystem.

Names are loaded when used, so that `import hf_interdistill` costs nothing. It also makes `strategy="rain"` known to
`generate`, as soon as transformers' generation is there (see `rain/api/registration.py`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .rain.api.registration import register_when_loaded

__version__ = "0.1.0"

_MODULES = {
    "BestOfNConfig": "selection.config",
    "CompareConfig": "comparison.config",
    "InteractionDistillationConfig": "interaction.config",
    "InteractionDistillationTrainer": "interaction.trainer",
    "InteractionTeacher": "interaction.teacher.teacher",
    "InteractionTeacherConfig": "interaction.teacher.config",
    "RAINLogitsProcessor": "rain.api.logits_processor",
    "RainClient": "rain.api.rain_client",
    "RainConfig": "rain.config",
    "RainDecoder": "rain.api.decoder",
    "RemoteRewardScorer": "scoring.remote",
    "RewardEnsemble": "scoring.ensemble",
    "RewardScorer": "scoring.scorer",
    "compare": "comparison.comparison",
    "diagnose": "diagnostics.diagnosis",
    "metric_path": "metrics",
    "pair_rewards": "metrics.training",
    "ppo_reward_model": "scoring.ppo",
    "ppo_value_model": "scoring.ppo",
    "register_rain": "rain.api.registration",
    "reward_metrics": "metrics.training",
    "run_benchmark": "reward_benchmarks.running",
    "run_best_of_n": "selection.job",
    "unregister_rain": "rain.api.registration",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str):
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(sorted(_MODULES))}")


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from .comparison.comparison import compare as compare
    from .comparison.config import CompareConfig as CompareConfig
    from .diagnostics.diagnosis import diagnose as diagnose
    from .interaction.config import InteractionDistillationConfig as InteractionDistillationConfig
    from .interaction.teacher.config import InteractionTeacherConfig as InteractionTeacherConfig
    from .interaction.teacher.teacher import InteractionTeacher as InteractionTeacher
    from .interaction.trainer import InteractionDistillationTrainer as InteractionDistillationTrainer
    from .metrics import metric_path as metric_path
    from .metrics.training import pair_rewards as pair_rewards
    from .metrics.training import reward_metrics as reward_metrics
    from .rain.api.decoder import RainDecoder as RainDecoder
    from .rain.api.logits_processor import RAINLogitsProcessor as RAINLogitsProcessor
    from .rain.api.rain_client import RainClient as RainClient
    from .rain.api.registration import register_rain as register_rain
    from .rain.api.registration import unregister_rain as unregister_rain
    from .rain.config import RainConfig as RainConfig
    from .reward_benchmarks.running import run_benchmark as run_benchmark
    from .scoring.ensemble import RewardEnsemble as RewardEnsemble
    from .scoring.ppo import ppo_reward_model as ppo_reward_model
    from .scoring.ppo import ppo_value_model as ppo_value_model
    from .scoring.remote import RemoteRewardScorer as RemoteRewardScorer
    from .scoring.scorer import RewardScorer as RewardScorer
    from .selection.config import BestOfNConfig as BestOfNConfig
    from .selection.job import run_best_of_n as run_best_of_n

register_when_loaded()
