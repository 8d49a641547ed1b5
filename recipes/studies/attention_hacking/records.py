"""The file of the study's finished runs: JSON, compressed, one run a line."""

from __future__ import annotations

import json
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_interdistill.utils.atomic_io import atomic_replacement

PACKED, PLAIN = "runs.json.xz", "runs.json"
_QUICK, _SMALLEST = 1, 6 | lzma.PRESET_EXTREME


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """The finished runs: those of `runs.json.xz`, else of a plain `runs.json`, else none."""
    packed, plain = folder / PACKED, folder / PLAIN
    if packed.exists():
        return json.loads(lzma.decompress(packed.read_bytes()))
    return json.loads(plain.read_text(encoding="utf-8")) if plain.exists() else []


def write_runs(folder: Path, records: Sequence[dict], *, is_complete: bool = False) -> None:
    """Replace `runs.json.xz` in one step; the same records give the same bytes.

    A plain `runs.json` is removed, for its runs are among the records by then.

    Args:
        is_complete: take seconds instead of a fraction of one, for a file of half the size.
    """
    text = as_lines(records).encode()
    with atomic_replacement(folder / PACKED) as scratch:
        scratch.write_bytes(lzma.compress(text, preset=_SMALLEST if is_complete else _QUICK))
    (folder / PLAIN).unlink(missing_ok=True)


def as_lines(rows: Sequence[dict]) -> str:
    """A JSON list with one row a line."""
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def rounded(value: Any, digits: int = 8) -> Any:
    """A value of JSON with its floats cut to so many significant digits, about what float32 has.

    With 7 a table changes: it counts the seeds in which an arm's loss is lower, and some losses are that close.
    """
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, list):
        return [rounded(each, digits) for each in value]
    return {name: rounded(each, digits) for name, each in value.items()} if isinstance(value, dict) else value
