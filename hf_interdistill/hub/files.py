"""Which files of a trained reward model are uploaded, and whether others could use them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ..scoring.attributes import ATTRIBUTES_FILE
from ..scoring.loading import holds_head, require_whole, require_whole_adapter
from ..scoring.raw_reward import with_raw_reward
from ..utils.privacy import hub_name, public_name, refuse_private_text, refuse_private_values
from ..utils.sources import close_names
from ..utils.whole_models import load_with_report
from .card import CardExtras, card_for_repository
from .loading_section import trained_on_messages

logger = logging.getLogger(__name__)

CARD, MAPS = "README.md", "maps.png"
_TEACHER = "interaction_teacher.json"
_FULL, _INDEX, _ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja")
# Older versions of the libraries note the folder that a thing was loaded from; nothing reads it.
_LOCAL_KEYS = ("_name_or_path", "name_or_path")


@dataclass(frozen=True)
class HubFile:
    """A file to upload: where it goes, and a file or the bytes to put there."""

    path_in_repo: str
    source: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size


def stage_model(
    folder: str | Path, repo_id: str, *, base_model: str | None = None, extras: CardExtras | None = None
) -> list[HubFile]:
    """The files of a reward model (full, or a LoRA adapter) as they go to a repository.

    Weights (safetensors), tokenizer with its chat template, config, heads of attributes, model card and its picture;
    nothing else in the folder: no checkpoints, no optimizer state, no pickles, no teacher.

    Args:
        folder: where the model was saved.
        repo_id: the repository, which the card names.
        base_model: Hub name of the base model, where training started from a folder.
        extras: what the card says beside the run; see `CardExtras`.

    Raises:
        ValueError: no reward model, or one that others could not use: a teacher, no score head or another part of the
            weights missing, no tokenizer, no chat template though it was trained on messages, pickled or broken
            weights, an adapter on a base model that nobody else has; a card without valid metadata; a path of this
            machine or a token in a file.
    """
    folder = Path(folder)
    config, is_adapter = _read_config(folder)
    weights = _weights(folder, is_adapter)
    _require_whole(folder, config, is_adapter)
    card = _read_card(folder / CARD)
    tokenizer_files, is_conversational = _tokenizer_files(folder, card)
    name = "adapter_config.json" if is_adapter else "config.json"
    if is_adapter:
        base_model = _public_base(config, base_model)
        config = {**config, "base_model_name_or_path": base_model}
    else:
        config = with_raw_reward(config)
    card = card_for_repository(
        card,
        repo_id,
        base_model=base_model,
        is_adapter=is_adapter,
        is_conversational=is_conversational,
        extras=extras or CardExtras(),
    )
    staged = [HubFile(name, _as_json(config)), HubFile(CARD, str(card).encode())]
    staged += [HubFile(path, folder / path) for path in weights]
    staged += [_without_local_keys(folder, path) for path in tokenizer_files]
    if (folder / ATTRIBUTES_FILE).is_file():
        staged.append(HubFile(ATTRIBUTES_FILE, folder / ATTRIBUTES_FILE))
    if MAPS in card.text and (folder / MAPS).is_file():
        staged.append(HubFile(MAPS, folder / MAPS))
    if "auto_map" in config:  # the model's own code, without which it does not load
        staged += [HubFile(path.name, path) for path in sorted(folder.glob("*.py"))]
    for file in staged:
        _refuse_private(file, card)
    return sorted(staged, key=lambda file: file.path_in_repo)


def _read_config(folder: Path) -> tuple[dict[str, Any], bool]:
    """The config without notes of where it came from, and whether it is an adapter's."""
    name = public_name(str(folder))
    if not folder.is_dir():
        raise ValueError(
            f"`model` is {name!r}, but there is no such folder.{close_names(folder)} Give the folder of a trained "
            "reward model."
        )
    if (folder / _TEACHER).exists():
        raise ValueError(
            f"{name} holds an interaction teacher, no reward model; using a reward model takes no teacher. Push the "
            "folder that the reward model was saved to."
        )
    for file in ("adapter_config.json", "config.json"):
        if (folder / file).is_file():
            config = json.loads((folder / file).read_text(encoding="utf-8"))
            break
    else:
        inner = sorted(path.name for path in folder.glob("checkpoint-*"))
        hint = f" It has the checkpoints {', '.join(inner)}: push one of them." if inner else ""
        raise ValueError(
            f"{name} holds no model: neither config.json nor adapter_config.json.{hint} Save it with "
            "`trainer.save_model()`."
        )
    if file == "config.json":
        kinds, outputs = config.get("architectures") or [], len(config.get("id2label") or (0, 1))
        if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
            raise ValueError(
                f"{name} holds {', '.join(kinds) or 'a model without architecture'}, but a reward model is a "
                "*ForSequenceClassification. Train one with `interdistill reward`."
            )
        if outputs != 1:
            raise ValueError(f"{name} has {outputs} outputs, but a reward model has one (`num_labels=1`).")
    return {key: value for key, value in config.items() if key not in _LOCAL_KEYS}, file == "adapter_config.json"


def _weights(folder: Path, is_adapter: bool) -> list[str]:
    """Names of the weight files, after a look at what they hold."""
    name = public_name(str(folder))
    if is_adapter:
        files = [_ADAPTER]
    elif (folder / _INDEX).is_file():
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        files = sorted(set(index["weight_map"].values()))
        outside = [file for file in files if Path(file).name != file]
        if outside:
            raise ValueError(
                f"{_INDEX} in {name} names weights outside the folder: {', '.join(map(public_name, outside))}. Only "
                "files beside it are pushed: save the model again with `save_pretrained`."
            )
    else:
        files = [_FULL]
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        pickles = sorted(path.name for pattern in ("*model*.bin", "*.pt") for path in folder.glob(pattern))
        hint = f" It has {', '.join(pickles)}; pickles are not pushed." if pickles else ""
        raise ValueError(
            f"{name} has no {', '.join(missing)}.{hint} Save the model with `save_pretrained` (transformers 5, PEFT)."
        )
    if not holds_head(key for file in files for key in _keys(folder / file)):
        fix = "Train with `modules_to_save=['score']`, or push it merged (`--merge true`) if its base has a head."
        raise ValueError(
            f"{name} has no score head in {', '.join(files)}: its rewards would be random. "
            + (fix if is_adapter else "Push the model that the trainer saved.")
        )
    return files if is_adapter or files == [_FULL] else [*files, _INDEX]


def _require_whole(folder: Path, config: dict[str, Any], is_adapter: bool) -> None:
    """Compare the names and shapes of the weights with those of the model; the weights stay where they are."""
    if is_adapter:
        require_whole_adapter(folder)
    elif "auto_map" in config:
        logger.warning(
            f"Whether {public_name(str(folder))} holds all weights of its model was not checked: the model has code "
            "of its own, which is not run here."
        )
    elif "quantization_config" in config:
        logger.warning(
            f"Whether {public_name(str(folder))} holds all weights of its model was not checked: they are quantized."
        )
    else:
        loaded = load_with_report(AutoModelForSequenceClassification, str(folder), num_labels=1, device_map="meta")
        require_whole(str(folder), *loaded)


def _keys(path: Path) -> Iterable[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a complete safetensors file ({error}). Save the model again.") from None


def _tokenizer_files(folder: Path, card: ModelCard | None) -> tuple[list[str], bool]:
    """Names of the tokenizer's files, and whether the model reads messages."""
    name = public_name(str(folder))
    if not any((folder / file).is_file() for file in _TOKENIZER[:2]):
        raise ValueError(
            f"{name} has no tokenizer (tokenizer.json, tokenizer_config.json), so nobody could give the model a text. "
            "Save the one that it was trained with: `tokenizer.save_pretrained(folder)`."
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    was_conversational = None if card is None else trained_on_messages(card.text)
    if was_conversational and not tokenizer.chat_template:
        raise ValueError(
            f"The model in {name} was trained on messages, but its tokenizer has no chat template: messages could not "
            "be formatted as in training. Set `tokenizer.chat_template` to the one used there and save the tokenizer."
        )
    if was_conversational is None and not tokenizer.chat_template:
        logger.warning(
            f"The tokenizer in {name} has no chat template: the card will say that the model reads plain text. If it "
            "was trained on messages, set `tokenizer.chat_template`, save the tokenizer and push again."
        )
    names = {*_TOKENIZER, *tokenizer.vocab_files_names.values()}
    paths = [path for pattern in (*sorted(names), *_TEMPLATES) for path in sorted(folder.glob(pattern))]
    is_conversational = bool(tokenizer.chat_template) if was_conversational is None else was_conversational
    return [path.relative_to(folder).as_posix() for path in paths], is_conversational


def _read_card(path: Path) -> ModelCard | None:
    if not path.is_file():
        return None
    try:
        return ModelCard.load(path)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{CARD} has no valid metadata (the YAML between the first two `---`): {error} Correct it, or delete the "
            "file to push a card that only says how to load the model."
        ) from None


def _public_base(adapter_config: dict[str, Any], base_model: str | None) -> str:
    """Hub name of an adapter's base model."""
    noted = adapter_config.get("base_model_name_or_path")
    base_model = base_model or hub_name(noted)
    if base_model is None:
        raise ValueError(
            f"The adapter was trained on the folder {public_name(str(noted))!r}, which nobody else has, so nobody "
            "could load it. Push it merged (`--merge true`), or give the same base model's Hub name (`--base_model`)."
        )
    return base_model


def _as_json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _without_local_keys(folder: Path, path: str) -> HubFile:
    if path == "tokenizer_config.json":
        config = json.loads((folder / path).read_text(encoding="utf-8"))
        if any(key in config for key in _LOCAL_KEYS):
            return HubFile(path, _as_json({key: value for key, value in config.items() if key not in _LOCAL_KEYS}))
    return HubFile(path, folder / path)


def _refuse_private(file: HubFile, card: ModelCard) -> None:
    """Look through what others will read as text (not the vocabulary, which may hold any text)."""
    if file.path_in_repo == CARD:
        refuse_private_values(f"the metadata of {CARD}", card.data.to_dict())
        refuse_private_text(CARD, card.text)
    elif file.path_in_repo.endswith("config.json"):
        content = file.source if isinstance(file.source, bytes) else file.source.read_bytes()
        refuse_private_values(file.path_in_repo, json.loads(content))
