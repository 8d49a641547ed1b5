"""The config of a model's text part."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PretrainedConfig


def text_config(model: nn.Module) -> PretrainedConfig:
    """The config of the text part of a transformers model, wrapped or not."""
    config: Any = model.config  # every transformers model has one, but `nn.Module` does not declare it
    return config.get_text_config()
