"""Config settings that make pipelines and servers return the raw reward.

For a model with one output, transformers' pipeline and vLLM apply a sigmoid, unless the config says that the problem
is a regression. vLLM's scoring endpoints and sentence-transformers' `CrossEncoder` use an activation of their own.
"""

from __future__ import annotations

from typing import Any

LABEL = "reward"
_ACTIVATION = {"activation_fn": "torch.nn.modules.linear.Identity"}
_UNNAMED = "LABEL_0"


def answer_with_raw_reward(config: Any) -> None:
    """Set them in the config of a model with one output; a label that has a name keeps it."""
    config.problem_type = "regression"
    if (config.id2label or {}).get(0, _UNNAMED) == _UNNAMED:
        config.id2label, config.label2id = {0: LABEL}, {LABEL: 0}
    config.sentence_transformers = {**(getattr(config, "sentence_transformers", None) or {}), **_ACTIVATION}


def with_raw_reward(config: dict[str, Any]) -> dict[str, Any]:
    """The same for the content of config.json."""
    names = config.get("id2label") or {}
    label = names.get("0", _UNNAMED)
    label = LABEL if label == _UNNAMED else label
    return {
        **config,
        "problem_type": "regression",
        "id2label": {"0": label},
        "label2id": {label: 0},
        "sentence_transformers": {**(config.get("sentence_transformers") or {}), **_ACTIVATION},
    }
