"""The license of the base model, which usually applies to models trained from it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ..utils.privacy import hub_name

logger = logging.getLogger(__name__)

LICENSE_KEYS = ("license", "license_name", "license_link")
_LEGAL = ("LICENSE*", "NOTICE*", "USE_POLICY*")


def legal_files(folder: Path) -> list[Path]:
    """License, notices and terms of use in a folder."""
    return sorted(path for pattern in _LEGAL for path in folder.glob(pattern) if path.is_file())


def folder_of_card(model: str) -> Path | None:
    """Where card, license, notices and terms of use of a model are: its folder, or what the Hub has of them.

    Args:
        model: folder or Hub name. `None` is returned, with a warning, where the Hub cannot be asked.
    """
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(model, allow_patterns=["README.md", *_LEGAL]))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        logger.warning(
            f"Card and license of {model} could not be read ({type(error).__name__}), so they are not carried over. "
            "Add them to the new card."
        )
        return None


def license_of_base(folder: str | Path, base_model: str | None = None) -> dict[str, str]:
    """`license` (and name and link of one that is `other`) of a model's base model; nothing where it is not known.

    Args:
        folder: of the model. base_model: Hub name of the base model; by default the one that the folder names.
    """
    base = base_model or _base_of(Path(folder))
    if base is None:
        return {}
    try:
        data = ModelCard.load(base).data.to_dict()
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        logger.warning(
            f"The license of the base model {base} was not found ({type(error).__name__}), so the card names none. "
            "Give it with `license`."
        )
        return {}
    return {key: data[key] for key in LICENSE_KEYS if isinstance(data.get(key), str)}


def _base_of(folder: Path) -> str | None:
    """Hub name of the base model, from the card or the adapter's config."""
    if (folder / "README.md").is_file():
        try:
            base = ModelCard.load(folder / "README.md").data.base_model
        except ValueError:
            base = None  # an invalid card is refused when the files are staged
        base = base[0] if isinstance(base, list) and base else base
        if isinstance(base, str) and hub_name(base):
            return base
    if (folder / "adapter_config.json").is_file():
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return hub_name(config.get("base_model_name_or_path"))
    return None
