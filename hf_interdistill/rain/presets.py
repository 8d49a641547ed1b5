"""Presets of `RainConfig`: published settings, a cheaper search, and the other strategies."""

from __future__ import annotations

from typing import Any

_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"

PRESETS: dict[str, dict[str, Any]] = {
    "harmless": {
        "min_visits": 6,
        "judge": "harmlessness",
        "turn_markers": ("Human:",),
        "similarity_model": _ENCODER,
    },
    "adversarial": {
        "similarity_model": _ENCODER,
        "min_visits": 5,
        "expansion_temperature": 2.0,
        "judge": "harmlessness",
        "turn_markers": ("USER:",),
    },
    "truthful": {
        "min_visits": 16,
        "rollout_stops": "",
        "judge": "truthfulness",
        "similarity_model": _ENCODER,
    },
    "fast": {
        "edge_lengths": (12,),
        "candidates": 8,
        "exploration": 8.0,
        "root_uniform": 1.0,
        "min_visits": 3,
        "iterations": 12,
        "extra_iterations": 6,
        "leaves_per_step": 6,
        "rollout_stops": "",
        "rollout_max_tokens": 12,
        "turn_markers": ("Human:",),
        "judge": "harmlessness_short",
        "judge_calibration": True,
    },
    "best_of_n": {"strategy": "best_of_n", "candidates": 16},
    "beam": {"strategy": "beam", "beams": 2, "candidates": 4, "edge_lengths": (8,)},
    "args": {"strategy": "args", "candidates": 10, "reward_weight": 1.5},
    "rad": {"strategy": "rad", "candidates": 20, "reward_weight": 15.0},
}
