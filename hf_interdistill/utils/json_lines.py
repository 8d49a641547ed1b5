"""Reads JSON Lines; an error names the file and the line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_json_lines(path: str | os.PathLike) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and content of each line that is not empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line that is not a JSON object, or no UTF-8, or holds half a character.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, or is not a file (looked from {Path.cwd()}).")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            place = f"Line {number} of {path}"
            try:
                text = line.decode("utf-8-sig").strip()  # editors may begin a file with a byte order mark
            except UnicodeDecodeError as error:
                reason = f"{error.reason}, byte {error.start}"
                raise ValueError(f"{place} is not UTF-8 ({reason}). Save the file as UTF-8.") from None
            if text:
                yield number, _parse(text, place)


def _parse(line: str, place: str) -> dict[str, Any]:
    hint = "Write one JSON object per line (JSON Lines)."
    if line in ("{", "[", "[{"):
        hint = "This looks like one JSON value over several lines: write one object per line."
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{place} is not a JSON object ({error.msg}, character {error.pos + 1}): {line[:60]!r}. {hint}"
        ) from None
    if not isinstance(row, dict):
        raise ValueError(f"{place} is not a JSON object, but {line[:60]!r}. {hint}")
    if "\\ud" in line.lower():  # what is no surrogate pair cannot be written in UTF-8 in another way
        for key, value in row.items():
            refuse_half_characters(key, f"A key of {place[0].lower()}{place[1:]}")
            refuse_half_characters(value, f"{place}, `{key}`,")
    return row


def refuse_half_characters(value: Any, where: str) -> None:
    """Raise `ValueError` if a text in a JSON value holds half of a surrogate pair, which no tokenizer reads."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    half = re.search("[\ud800-\udfff]", text)
    if half:
        raise ValueError(
            f"{where} holds half a character ({half[0]!r} after {text[max(0, half.start() - 40) : half.start()]!r}), "
            "one of a surrogate pair, which is not Unicode text. Correct the source, or "
            "`text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')`."
        )
