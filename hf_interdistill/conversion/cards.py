"""The model card of a converted model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from ..hub.card import CardExtras, card_for_repository
from ..hub.licenses import license_of_base
from ..utils.privacy import hub_name, public_name
from .checkpoint import Checkpoint

logger = logging.getLogger(__name__)

_KEPT = ("license", "license_name", "license_link", "language", "datasets", "base_model")
_TEXT = """---
{data}---

# {name}

A reward model with one output (`{kind}`), converted by `interdistill convert` from {source}.

| | |
| --- | --- |
{rows}
"""


def converted_card(checkpoint: Checkpoint, name: str, kind: str, facts: dict[str, str], is_chat: bool) -> ModelCard:
    """The card: license, languages, data and base model of the original's card, and what was done.

    Args:
        name: of the result. kind: its class. facts: what was done, for a table. is_chat: whether it reads messages.
    """
    data = _original_data(checkpoint.folder / "README.md")
    source = hub_name(checkpoint.name)
    base = source or data.get("base_model")
    if checkpoint.adapter is not None:
        base = source or hub_name(checkpoint.adapter["base_model_name_or_path"]) or base
    base = base[0] if isinstance(base, list) and len(base) == 1 else base
    base = base if isinstance(base, str) and hub_name(base) else None
    data = {**{key: value for key, value in data.items() if key != "base_model"}, "tags": ["reward-model"]}
    license = {} if "license" in data or base is None else license_of_base(checkpoint.folder, base)
    text = _TEXT.format(
        data=yaml.safe_dump({**data, **license}, sort_keys=False),
        name=name,
        kind=kind,
        source=f"[{source}](https://huggingface.co/{source})" if source else f"`{public_name(checkpoint.name)}`",
        rows="\n".join(f"| {key} | {_cell(value)} |" for key, value in facts.items()),
    )
    return card_for_repository(
        ModelCard(text, ignore_metadata_errors=True),
        name,
        base_model=base,
        is_adapter=False,
        is_conversational=is_chat,
        extras=CardExtras(),
    )


def _cell(text: str) -> str:
    """A text in a Markdown table, where tokens such as `<|pad|>` would end the cell."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _original_data(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = ModelCard.load(path).data.to_dict()
    except (ValueError, yaml.YAMLError) as error:
        logger.warning(
            f"The metadata of {path.name} beside the model is not valid ({error!s:.120}), so license and base model "
            "are not carried over. Add them to the new card."
        )
        return {}
    return {key: found[key] for key in _KEPT if found.get(key)}
