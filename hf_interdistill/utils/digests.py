"""Digests of rows of data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any


def digest_of(rows: Sequence[dict[str, Any]]) -> str:
    """A digest of rows, in their order."""
    digest = blake2b(digest_size=8)
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=_as_text).encode() + b"\n")
    return digest.hexdigest()


def _as_text(value: Any) -> str:
    """A value that JSON does not have; a function, such as a tool, by its name: its address is new in every run."""
    return getattr(value, "__qualname__", None) or str(value)
