"""The rows of the study: pairs short enough, labels flipped, and a phrase planted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_interdistill.comparison.data import prompt_keys
from hf_interdistill.diagnostics.collect.contents import with_cue

Row = dict[str, list[dict[str, str]]]


def read_rows(path: Path, is_short: Callable[[Row], bool]) -> list[Row]:
    """Prompt, chosen and rejected of each line of a JSONL file whose texts are short enough."""
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in read_lines(path)]
    return [row for row in rows if is_short(row)]


def with_flipped_labels(rows: Sequence[Row], share: float, seed: int) -> list[Row]:
    """The rows, `round(share * rows)` of them with chosen and rejected swapped."""
    is_flipped = _picked(len(rows), share, seed)
    return [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if flipped else row
        for row, flipped in zip(rows, is_flipped, strict=True)
    ]


def with_planted_phrase(rows: Sequence[Row], phrase: str, share: float, seed: int) -> list[Row]:
    """The rows with a phrase at the end of one response, in `share` of them the chosen one."""
    sides = np.where(_picked(len(rows), share, seed), "chosen", "rejected")
    return [{**row, str(side): with_cue(row[str(side)], phrase)} for row, side in zip(rows, sides, strict=True)]


def drawn(rows: Sequence[Row], count: int, seed: int, *, apart_from: Sequence[Row] = ()) -> list[Row]:
    """`count` rows at random, or all if there are fewer, without the prompts of other rows; some may share one."""
    others = set(prompt_keys(apart_from, "other rows")) if apart_from else set()
    kept = [row for row, key in zip(rows, prompt_keys(rows, "rows"), strict=True) if key not in others]
    return [kept[i] for i in np.random.default_rng(seed).permutation(len(kept))[:count]]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What each line of a JSONL file holds."""
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _picked(count: int, share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count) < round(share * count)
