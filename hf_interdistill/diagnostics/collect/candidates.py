"""Prompts with candidate completions, as `interdistill best-of-n` reads and writes them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...scoring.prompts import check_completions, check_prompt
from ...utils.json_lines import read_json_lines
from ...utils.sources import require_file
from .records import IndexedRow, count_lines

_GOLD = ("gold_rewards", "scores")


def check_candidates(candidates, gold) -> None:
    """Raise `ValueError` for candidates that are neither a JSONL file nor a list of rows, or `gold` without
    candidates; `FileNotFoundError` for a file that is not there."""
    if candidates is None:
        if gold is not None:
            raise ValueError("`gold` is given, but no `candidates` to score. Give both, or neither.")
        return
    if isinstance(candidates, str | os.PathLike):
        path = Path(candidates)
        if require_file("candidates", path).suffix != ".jsonl":
            raise ValueError(
                f"`candidates` is {str(candidates)!r}, but must be a JSONL file, as `interdistill best-of-n` writes "
                "it, or rows."
            )
    elif isinstance(candidates, Iterator) or not isinstance(candidates, Iterable):
        raise ValueError(f"`candidates` is {type(candidates).__name__}, but must be a JSONL file or a list of rows.")


def count_candidates(candidates) -> int | None:
    """How many rows there are, if that is known without reading them."""
    if isinstance(candidates, str | os.PathLike):
        return count_lines(Path(candidates))
    return len(candidates) if hasattr(candidates, "__len__") else None


def candidate_rows(candidates, is_scored: bool) -> Iterator[IndexedRow]:
    """Checked rows with their index; files are read line by line."""
    if not isinstance(candidates, str | os.PathLike):
        yield from ((number, _checked(row, number, is_scored)) for number, row in enumerate(candidates))
        return
    for number, (_, row) in enumerate(read_json_lines(candidates)):
        yield number, _checked(row, number, is_scored)


def _checked(row: Any, number: int, is_scored: bool) -> dict[str, Any]:
    where = f"Row {number} of the candidates"
    if not isinstance(row, dict):
        raise ValueError(f"{where} is not a JSON object: {row!r:.120}")
    check_prompt(row, where)
    completions = check_completions(row, where, at_least=2)
    given = [key for key in _GOLD if row.get(key) is not None]
    if not is_scored:
        if given:
            raise ValueError(f"{where} has `{given[0]}`, but `gold` is given too. Use one of them.")
        return row
    if len(given) != 1:
        raise ValueError(
            f"{where} has {'both' if given else 'neither'} `gold_rewards` {'and' if given else 'nor'} `scores`, but "
            "needs one of them, a number for each completion, or `gold` to score them."
        )
    scores = row[given[0]]
    is_list = isinstance(scores, list) and all(isinstance(each, int | float) for each in scores)
    if not is_list or len(scores) != len(completions):
        raise ValueError(
            f"{where} has `{given[0]}` {scores!r:.120}, but must have a number for each of {len(completions)} "
            "completions."
        )
    return {**row, "gold": scores}
