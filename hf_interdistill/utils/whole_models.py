"""Loads complete models only: transformers would fill weights that a checkpoint lacks with random numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging as transformers_logging

from .fields import new_names
from .privacy import public_name
from .unsharded import load_unsharded

# Options that say where files are: for the tokenizer and an adapter's files as well as the model.
HUB_OPTIONS = (
    *("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"),
    "trust_remote_code",
)
# Names of the score head in sequence classifiers of transformers.
SCORE_HEADS = ("score", "classifier")
_SHOWN = 6


class IncompleteModelError(ValueError):
    """A checkpoint has only a part of a model, or more than the model uses; the message names the weights."""


@dataclass(frozen=True)
class LoadReport:
    """How a checkpoint and a model differ.

    Args:
        missing: weights of the model that the checkpoint lacks or has in another shape, by name, as they are shown.
        unused: weights of the checkpoint that the model has no place for.
    """

    missing: dict[str, str]
    unused: tuple[str, ...]


def hub_options(options: dict[str, Any], *left_out: str) -> dict[str, Any]:
    """The options of `from_pretrained` that say where files are, without `left_out`."""
    return {name: options[name] for name in HUB_OPTIONS if options.get(name) is not None and name not in left_out}


def model_options(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options of `from_pretrained` with `torch_dtype` under its new name, which would silently override it."""
    return new_names(kind, options, {"torch_dtype": "dtype"})


def refuse_options_of_loading(options: dict[str, Any]) -> None:
    """Raise `ValueError` for options of `from_pretrained` that are given with a model that is loaded already."""
    if options:
        raise ValueError(
            f"The model is loaded already, so {', '.join(f'`{name}`' for name in options)} would change nothing. Give "
            "that to its own `from_pretrained`."
        )


def load_with_report(auto_class, name: str, **options) -> tuple[Any, LoadReport]:
    """`auto_class.from_pretrained(name, **options)`, not sharded by FSDP or DeepSpeed, and what was missing.

    Raises:
        IncompleteModelError: a weight file that cannot be read.
    """
    try:
        # Other shapes are reported with the missing weights; by itself transformers raises without naming the fix.
        with load_unsharded():
            model, info = auto_class.from_pretrained(
                name, **{**options, "output_loading_info": True, "ignore_mismatched_sizes": True}
            )
    except SafetensorError as error:
        raise IncompleteModelError(
            f"{public_name(name)} has a weight file that cannot be read ({error}). Copy or download it again."
        ) from error
    missing = {key: key for key in info["missing_keys"]}
    for key, stored, wanted in info["mismatched_keys"]:
        missing[key] = f"{key} of shape {tuple(stored)} instead of {tuple(wanted)}"
    return model, LoadReport(dict(sorted(missing.items())), tuple(sorted(info["unexpected_keys"])))


@contextmanager
def without_load_report() -> Iterator[None]:
    """Context in which transformers does not warn that a score head is new, where it may be."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def is_head_weight(model: nn.Module, key: str) -> bool:
    """Whether a weight belongs to a head: it is outside the base model, or in its pooler."""
    base = getattr(model, "base_model_prefix", "")
    return not key.startswith(f"{base}.") or key.startswith(f"{base}.pooler.")


def refuse_missing(name: str, missing: Iterable[str], fix: str) -> None:
    """Raise `IncompleteModelError` if any weight is missing."""
    missing = list(missing)
    if missing:
        raise IncompleteModelError(
            f"{public_name(name)} holds only a part of its model. Missing or of another shape: {listed(missing)}. "
            f"These weights would be random, and different after each load. {fix}"
        )


def refuse_unused(name: str, unused: Iterable[str], fix: str) -> None:
    """Raise `IncompleteModelError` if weights of a checkpoint would be left out."""
    unused = list(unused)
    if unused:
        raise IncompleteModelError(
            f"{public_name(name)} has weights that its model does not use: {listed(unused)}. Without them it is not "
            f"the model that was trained. {fix}"
        )


def listed(keys: Iterable[str]) -> str:
    """The first names of a list, and the number of others."""
    keys = list(keys)
    return ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")


def adapter_keys(model: Any) -> set[str]:
    """Names of the weights that the active adapter of a PEFT model has in its file."""
    from peft.utils import get_peft_model_state_dict

    return set(get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False))
