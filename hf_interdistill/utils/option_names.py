"""One vocabulary of options: each command also accepts the names that other commands and TRL use for an option."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# The first name of each is taken by every command that has one of the others. A command with several has the first.
SYNONYMS = (
    ("model", "model_name_or_path", "teacher_model"),
    ("data", "dataset_name", "input", "prompts"),
    ("output", "output_dir"),
)


def field_names(dataclass_types: Iterable[type]) -> set[str]:
    """The options that dataclasses make."""
    return {each.name for kind in dataclass_types for each in dataclasses.fields(kind) if each.init}


def synonyms(known: set[str]) -> dict[str, str]:
    """The names that a command with these options takes beside them, and the option that each means."""
    found = {}
    for names in SYNONYMS:
        own = next((name for name in names if name in known), None)
        if own is not None:
            found.update({name: own for name in names if name not in known})
    return found


def short_names(known: set[str]) -> dict[str, str]:
    """For each option that has one: the name that all commands share."""
    others = synonyms(known)
    return {others[names[0]]: names[0] for names in SYNONYMS if names[0] in others}


def rename_keys(settings: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """Settings under the command's own names.

    Raises:
        ValueError: two of the keys mean one option.
    """
    others = synonyms(known)
    renamed = [others.get(key, key) for key in settings]
    _require_once(list(settings), renamed)
    return dict(zip(renamed, settings.values(), strict=True))


def rename_words(words: Sequence[str], known: set[str]) -> list[str]:
    """Words of a command line (`--key value`, `--key=value`) with the command's own names.

    Raises:
        ValueError: two of the options mean one.
    """
    others, renamed, keys = synonyms(known), [], {}
    for word in words:
        if word.startswith("--"):
            key, *value = word[2:].split("=", 1)
            key = key.replace("-", "_")
            if key in others:
                word = "=".join([f"--{others[key]}", *value])
            keys[key] = others.get(key, key)
        renamed.append(word)
    _require_once(list(keys), list(keys.values()))
    return renamed


def _require_once(given: Sequence[str], renamed: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for name, own in zip(given, renamed, strict=True):
        if own in first:
            raise ValueError(f"`{first[own]}` and `{name}` are two names of one option. Leave one out.")
        first[own] = name
