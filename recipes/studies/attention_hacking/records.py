"""The file of the study's finished runs: JSON, compressed, one run a line.

`runs` has the records but for which pairs of each test were right; `right` has those by the record's id. Digits and
words compress better apart.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_interdistill.utils.atomic_io import atomic_replacement

PACKED, PLAIN = "runs.json.xz", "runs.json"
_QUICK, _SMALLEST = 1, 6 | lzma.PRESET_EXTREME


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """The finished runs: those of `runs.json.xz`, else of a plain `runs.json`, else none."""
    packed, plain = folder / PACKED, folder / PLAIN
    if packed.exists():
        return _from_text(lzma.decompress(packed.read_bytes()).decode())
    return _from_text(plain.read_text(encoding="utf-8")) if plain.exists() else []


def _from_text(text: str) -> list[dict[str, Any]]:
    kept = json.loads(text)
    if isinstance(kept, list):  # of an older version, with everything in the records
        return kept
    for record in kept["runs"]:
        for test, right in zip(_tests(record), kept["right"][record["id"]], strict=True):
            test["right"] = right
    return kept["runs"]


def _to_text(records: Sequence[dict]) -> str:
    runs, lines = json.loads(json.dumps(records)), []
    for record in runs:
        right = [test.pop("right") for test in _tests(record)]
        lines.append(f"{json.dumps(record['id'], ensure_ascii=False)}:{json.dumps(right, separators=(',', ':'))}")
    return '{"runs":' + as_lines(runs) + ',"right":{\n' + ",\n".join(lines) + "\n}}\n"


def _tests(record: dict) -> Iterator[dict]:
    yield from record["tests"].values()
    for sides in record["cued"].values():
        yield from sides.values()


def write_runs(folder: Path, records: Sequence[dict], *, is_complete: bool = False) -> None:
    """Replace `runs.json.xz` in one step; the same records give the same bytes.

    A plain `runs.json` is removed, for its runs are among the records by then.

    Args:
        is_complete: take seconds instead of a fraction of one, for a file of half the size.
    """
    text = _to_text(records).encode()
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
