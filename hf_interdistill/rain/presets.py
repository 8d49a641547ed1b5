"""Presets of `RainConfig`: published settings, a cheaper search, and the other strategies."""

from __future__ import annotations

from typing import Any

from .strategies import STRATEGIES, is_read

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


def preset_fields(name: str, strategy: Any = None) -> dict[str, Any]:
    """The fields of a preset, for its own strategy or another one.

    Another strategy gets those of the preset that it reads, and the rest of the preset of its name.

    Args:
        name: the preset. strategy: the strategy that is asked for beside it, if one is.

    Raises:
        ValueError: no such preset, or that of another strategy.
    """
    if name not in list(PRESETS):  # a list, as YAML may give what cannot be hashed
        raise ValueError(f"`{name}` is not a preset of RainConfig. Choose one of {', '.join(PRESETS)}.")
    own = PRESETS[name]
    if strategy not in list(STRATEGIES) or strategy == own.get("strategy", "rain"):
        return own  # `RainConfig` refuses what is no strategy
    if "strategy" in own:
        raise ValueError(
            f"`strategy` is {strategy!r}, but the preset {name!r} is that of the strategy {own['strategy']!r}. Leave "
            "one of them out, or change `preset`."
        )
    return {**PRESETS[strategy], **{field: value for field, value in own.items() if is_read(strategy, field)}}
