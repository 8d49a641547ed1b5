"""Describes how the input of a result has changed, for a message."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

_SHOWN = 80  # characters of a value


def describe_change(row: dict[str, Any], given: dict[str, Any], keys: Iterable[str]) -> str | None:
    """What has changed since a row was made of its input, or `None`."""
    for key in keys:
        if row.get(key) != given.get(key):
            old, new = _difference(row.get(key), given.get(key))
            return f"its `{key}` has changed since: it was {old}, and is {new} now."
    return None


def _difference(old: Any, new: Any) -> tuple[str, str]:
    """Two values from their first difference on, as short texts."""
    texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in (old, new)]
    differs = (number for number, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1])
    same = next(differs, min(map(len, texts)))
    start = 0 if same < _SHOWN // 2 else same - _SHOWN // 4
    first, second = (
        repr(("..." if start else "") + text[start : start + _SHOWN] + ("..." if text[start + _SHOWN :] else ""))
        for text in texts
    )
    return first, second
