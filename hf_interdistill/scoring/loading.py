"""Loads trained reward models, full ones and PEFT adapters; incomplete ones are refused."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils import find_adapter_config_file

from ..utils.privacy import public_name
from ..utils.sources import load_tokenizer, loading
from ..utils.whole_models import (
    SCORE_HEADS,
    IncompleteModelError,
    LoadReport,
    adapter_keys,
    hub_options,
    is_head_weight,
    listed,
    load_with_report,
    refuse_missing,
    refuse_unused,
    without_load_report,
)

logger = logging.getLogger(__name__)

# Buffers that older versions of transformers stored, and that are computed now.
_BUFFERS = re.compile(r"(attn|attention)\.(masked_)?bias$|masked_bias$|inv_freq$|position_ids$|num_batches_tracked$")
# Settings of LoRA with which an adapter can share its base model: which layers it has, of what rank and scale.
_PLAIN_SETTINGS = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora", "lora_bias", "lora_dropout", "fan_in_fan_out"),
    *("modules_to_save", "init_lora_weights", "eva_config", "qalora_group_size"),
}
_PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva")  # others may rewrite the base model on loading
_SAVE_AGAIN = (
    "Copy or download all of its files (each shard that the index names), or save the trained model again with "
    "`save_pretrained`."
)


def load_reward_model(name: str, tokenizer=None, **options) -> tuple[Any, Any]:
    """A trained reward model, full or an adapter on its base model, and its tokenizer.

    Args:
        name: folder or Hub name.
        tokenizer: by default the one saved with it. An adapter's base model gets as many embeddings as it has tokens.
        **options: of `from_pretrained`. `revision` and `subfolder` are the adapter's, where it is one.

    Raises:
        ValueError: no trained score head; an adapter of another task, or on another adapter.
        IncompleteModelError: weights that are missing, have another shape, or do not belong to the model.
    """
    if is_adapter(name, options):
        return load_adapters([name], tokenizer, options)
    model, report = load_with_report(AutoModelForSequenceClassification, name, num_labels=1, **options)
    require_whole(name, model, report)
    return model, _tokenizer(name, tokenizer, options)


def _tokenizer(name: str, tokenizer, options: dict[str, Any]):
    return load_tokenizer(name, **hub_options(options)) if tokenizer is None else tokenizer


def require_whole(name: str, model: nn.Module, report: LoadReport) -> None:
    """Raise an error, of the kinds of `load_reward_model`, unless checkpoint and model have the same weights."""
    _require_head(name, model, report.missing)
    refuse_missing(name, report.missing.values(), _SAVE_AGAIN)
    own = {part for part, _ in model.named_children()}
    unused = (key for key in report.unused if key.split(".")[0] in own and not _BUFFERS.search(key))
    refuse_unused(name, unused, "Its config must be the one that it was trained with.")


def is_adapter(name: str, options: dict[str, Any]) -> bool:
    """Whether a folder or a repository holds a PEFT adapter; `options` as in `from_pretrained`."""
    return find_adapter_config_file(name, **hub_options(options, "trust_remote_code")) is not None


def holds_head(keys: Iterable[str]) -> bool:
    """Whether the names of a checkpoint's weights (or an adapter's) include those of a score head."""
    return any(f".{head}." in key or key.startswith(f"{head}.") for key in keys for head in SCORE_HEADS)


def load_adapters(names: Sequence[str], tokenizer, options: dict[str, Any]) -> tuple[Any, Any]:
    """A PEFT model with one or several adapters on one base model, and the tokenizer of the first.

    Args:
        names: folders or Hub names of adapters of the same base model. A single one is named `default` in the model,
            several are named by `adapter_name` of their number.
        tokenizer: by default the one saved with the first. options: of `from_pretrained`.

    Raises:
        ValueError, IncompleteModelError: see `load_reward_model`.
    """
    from peft import PeftModel
    from peft.utils import load_peft_weights

    where = hub_options(options, "trust_remote_code")
    configs = [_adapter_config(name, where) for name in names]
    base_name, base_options = _base_of(names[0], configs[0], options)
    with without_load_report(), loading(base_name or names[0], f"base model (of the adapter {names[0]})"):
        base, report = load_with_report(AutoModelForSequenceClassification, base_name, num_labels=1, **base_options)
    tokenizer = _tokenizer(names[0], tokenizer, options)
    if len(tokenizer) > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(len(tokenizer))
    dispatch = {key: options[key] for key in ("device_map", "max_memory", "offload_folder") if key in options}
    model: Any = None
    for number, (name, config) in enumerate(zip(names, configs, strict=True)):
        weights = load_peft_weights(name, device="cpu", **where)
        lost = {key: shown for key, shown in report.missing.items() if f"{adapter_prefix(config)}{key}" not in weights}
        _require_head(name, base, lost)
        refuse_missing(base_name, lost.values(), _SAVE_AGAIN)
        with _naming_misfits(name, base_name):
            if model is None:
                own = "default" if len(names) == 1 else adapter_name(0)
                model = PeftModel.from_pretrained(base, name, own, config=config, **where, **dispatch)
            else:
                model.load_adapter(name, adapter_name(number), **where)
                model.set_adapter(adapter_name(number))
        expected = adapter_keys(model)
        refuse_missing(name, sorted(expected - weights.keys()), _SAVE_AGAIN)
        fix = f"Use the base model that it was trained on, which {public_name(base_name)} is not."
        # PEFT loads weights of the base model too, such as embeddings, where they have their names in its own model.
        refuse_unused(name, sorted(weights.keys() - expected - model.state_dict().keys()), fix)
    return model, tokenizer


def adapter_name(number: int) -> str:
    """The name of one of several adapters in their model; none that a weight's name could hold, as a number would."""
    return f"member_{number}"


@contextmanager
def _naming_misfits(name: str, base_name: str) -> Iterator[None]:
    """Load an adapter inside the block; an error says what does not fit."""
    try:
        yield
    except KeyError as error:  # PEFT's, for a module that the adapter should hold whole
        refuse_missing(name, [key for key in error.args if str(key).startswith("base_model.")], _SAVE_AGAIN)
        raise
    except RuntimeError as error:
        mismatches = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        if not mismatches:
            raise
        raise IncompleteModelError(
            f"The adapter in {public_name(name)} does not fit its base model {public_name(base_name)} (the first of "
            f"{len(mismatches)}: {mismatches[0]}). Use the base model that it was trained on."
        ) from error


def _adapter_config(name: str, where: dict[str, Any]) -> Any:
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(name, **where)
    require_sequence_classification(f"The adapter in {public_name(name)}", config.task_type)
    return config


def _base_of(name: str, config: Any, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name of an adapter's base model, and the options to load it with."""
    base_name = config.base_model_name_or_path
    base_options = {key: value for key, value in options.items() if key not in ("revision", "subfolder")}
    if config.revision is not None:
        base_options["revision"] = config.revision
    if is_adapter(base_name, base_options):
        raise ValueError(
            f"The adapter in {public_name(name)} was trained on {public_name(base_name)}, which is an adapter itself, "
            "and an adapter needs a full base model. Merge the first one (`merge_and_unload`), save the result, and "
            "name its folder as `base_model_name_or_path` in adapter_config.json."
        )
    return base_name, base_options


def shareable_base(name: str, options: dict[str, Any]) -> tuple[Any, ...] | None:
    """The base model of a plain LoRA adapter whose own weights are the low-rank ones and score heads alone, so that
    others can share the model: its name and revision. `None` for any other adapter.

    Args:
        name: folder or Hub name of an adapter. options: of `from_pretrained`.
    """
    from peft.utils import load_peft_weights

    where = hub_options(options, "trust_remote_code")
    config = _adapter_config(name, where)
    if not _is_plain(config):
        return None
    weights = load_peft_weights(name, device="cpu", **where)
    if not all(".lora_A." in key or ".lora_B." in key or holds_head([key]) for key in weights):
        return None
    return os.path.realpath(config.base_model_name_or_path), config.revision


def _is_plain(config) -> bool:
    """Whether PEFT adds an adapter of this config without changing the base model's layers or weights, and lets it be
    chosen for each row of a batch. Settings that are not known here count as changes."""
    from peft import LoraConfig

    if type(config) is not LoraConfig or config.init_lora_weights not in _PLAIN_INITS:
        return False
    plain = LoraConfig()
    others = (each.name for each in fields(config) if each.name not in _PLAIN_SETTINGS)
    return all(getattr(config, name) == getattr(plain, name) for name in others)


def adapter_prefix(config) -> str:
    """What an adapter's file has before the names of the base model's weights, such as those of the score head."""
    return "base_model." if config.is_prompt_learning else "base_model.model."


def require_whole_adapter(folder: str | Path) -> None:
    """Raise `IncompleteModelError` if the file of an adapter lacks weights that its base model's config asks for.

    The base model's weights are not loaded. Without its config nothing is compared, and a warning says so.
    """
    from peft import PeftConfig, get_peft_model

    config = PeftConfig.from_pretrained(str(folder))
    base_name = config.base_model_name_or_path
    try:
        base_config = AutoConfig.from_pretrained(base_name, revision=config.revision, num_labels=1)
    except (OSError, ValueError) as error:
        logger.warning(
            f"Whether {public_name(folder)} holds all weights of its adapter was not checked: the config of its base "
            f"model {public_name(str(base_name))} cannot be read ({type(error).__name__})."
        )
        return
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # others are computed from the base model's weights
    with torch.device("meta"):
        model = get_peft_model(AutoModelForSequenceClassification.from_config(base_config), config)
    with safe_open(Path(folder) / "adapter_model.safetensors", framework="pt") as file:
        saved = set(file.keys())
    refuse_missing(str(folder), sorted(adapter_keys(model) - saved), _SAVE_AGAIN)


def require_sequence_classification(what: str, task_type: str | None) -> None:
    """Raise `ValueError` for an adapter of another task than sequence classification."""
    if task_type not in (None, "SEQ_CLS"):
        raise ValueError(
            f"{what} has `task_type={str(getattr(task_type, 'value', task_type))!r}`, but a reward model is a "
            "sequence classifier: PEFT would neither wrap nor save its score head. Set `task_type='SEQ_CLS'` "
            "(`lora_task_type` on the command line)."
        )


def _require_head(name: str, model: nn.Module, missing: dict[str, str]) -> None:
    heads = [shown for key, shown in missing.items() if is_head_weight(model, key)]
    if heads:
        raise ValueError(
            f"{public_name(name)} has no trained score head ({listed(heads)} not found in it, or of another shape): "
            "its rewards would be random numbers. Load a trained reward model. A LoRA adapter must have been trained "
            "with `modules_to_save=['score']`."
        )
