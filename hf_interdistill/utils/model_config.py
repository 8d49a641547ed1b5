"""Configs of models: that of the text part, and a check that a name is a model."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import find_adapter_config_file

from .sources import loading


def text_config(model: nn.Module) -> PretrainedConfig:
    """The config of the text part of a transformers model, wrapped or not."""
    config: Any = model.config  # every transformers model has one, but `nn.Module` does not declare it
    return config.get_text_config()


def require_model(kind: str, name: str, **options: Any) -> PretrainedConfig | None:
    """Check, before long work, that a folder or a Hub repository holds a model or an adapter.

    Returns the model's config; `None` for an adapter.

    Args:
        kind: what it should be, for the message. name: folder or Hub name. options: `revision`, `subfolder` and the
            like, as in `from_pretrained`.

    Raises:
        SourceNotFoundError: a path that is not there, a folder without a model, or a name that the Hub does not have.
    """
    with loading(name, kind):
        if find_adapter_config_file(name, **options) is not None:
            return None
        return AutoConfig.from_pretrained(name, **options)
