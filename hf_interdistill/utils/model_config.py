"""Configs of models: of the text part, and whether there is one where a model is said to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import find_adapter_config_file


def text_config(model: nn.Module) -> PretrainedConfig:
    """The config of the text part of a transformers model, wrapped or not."""
    config: Any = model.config  # every transformers model has one, but `nn.Module` does not declare it
    return config.get_text_config()


def require_model(option: str, name: str, revision: str | None = None) -> PretrainedConfig | None:
    """Check, before long work, that a folder or a Hub repository holds a model or an adapter.

    Returns the model's config; `None` for an adapter.

    Args:
        option: name of the option, for the message. name: folder or Hub name. revision: of the repository.

    Raises:
        FileNotFoundError: a path that is not there, or a folder without a model.
        OSError: the Hub has no such model, or cannot be reached.
    """
    path = Path(name)
    if path.is_dir() and not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
        raise FileNotFoundError(
            f"`{option}` is {name!r}, a folder without `config.json` or `adapter_config.json`. Name the folder that a "
            "model was saved in."
        )
    if not path.is_dir() and (path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise FileNotFoundError(
            f"`{option}` is {name!r}, which is {'no folder' if path.exists() else 'not there'} (looked from "
            f"{Path.cwd()}). Name a folder with a model, or a model on the Hub."
        )
    if find_adapter_config_file(name, revision=revision) is not None:
        return None
    return AutoConfig.from_pretrained(name, revision=revision)
