"""One form for messages, tools and template arguments, whatever container they come from.

A chat template may write a whole structure (`arguments | tojson`), so its keys become tokens. Containers change
structures: Arrow (`datasets`, Parquet) gives all structs of a column the same keys in the same order, with `None`
where a row has none, and turns integers beside floats into floats; pandas turns lists into arrays, and numbers into
numpy scalars. Here all of this is undone, so that a row has the same tokens whatever its container. What Arrow cannot
tell apart has one form: a key without a value does not count as a key, as newer versions of transformers render
messages too. Tools and arguments in JSON stay as they are, so an intended null can be given there.
"""

from __future__ import annotations

import json
import numbers
from collections.abc import Mapping
from typing import Any

# As tools and tool calls are usually written; other keys follow by the alphabet.
_FIRST_KEYS = (
    *("role", "content", "id", "type", "text", "function", "name", "description", "parameters", "arguments"),
    *("properties", "items", "enum", "required", "return"),
)
_RANKS = {key: rank for rank, key in enumerate(_FIRST_KEYS)}
_LARGEST_EXACT = 2**53  # above it floats skip integers


def normal_value(value: Any) -> Any:
    """A structure in plain Python: dictionaries without keys of value `None` and in one order, lists, and integers for
    floats that are whole numbers. Elements of lists stay, `None` too; texts and other objects stay as they are."""
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, Mapping):
        value = {key: _opened(value, key) for key in value}
        kept = sorted((key for key in value if value[key] is not None), key=_place)
        return {key: normal_value(value[key]) for key in kept}
    if isinstance(value, list | tuple):
        return [normal_value(each) for each in value]
    if hasattr(value, "tolist"):  # numpy's arrays and scalars, a column of pandas
        return normal_value(value.tolist())
    if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_EXACT:
        return int(value)
    return value


def normal_list(value: Any) -> Any:
    """Messages or tools in their normal form; those that pandas reads from Parquet may be JSON texts, one each."""
    value = normal_value(value)
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        return value
    try:
        return normal_value([json.loads(each) for each in value])
    except json.JSONDecodeError:
        return value


def is_missing(value: Any) -> bool:
    """Whether a column has no value in a row: `None`, or a NaN, `NA` or `NaT` of pandas."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, numbers.Real) and bool(value != value)


# Of tools and tool calls, with a key that stands beside them: never a text.
_STRUCTURES = {"function": "type", "parameters": "name", "properties": "type"}


def _opened(value: Mapping, key: Any) -> Any:
    """The value of a key; in Parquet structures that differ are JSON, which pandas leaves as it is."""
    entry = value[key]
    if not isinstance(entry, str) or _STRUCTURES.get(key) not in value or not entry.startswith("{"):
        return entry
    try:
        return json.loads(entry)
    except json.JSONDecodeError:
        return entry


def _place(key: Any) -> tuple[int, str]:
    return _RANKS.get(key, len(_RANKS)), str(key)
