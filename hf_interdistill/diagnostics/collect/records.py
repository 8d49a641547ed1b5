"""Records kept line by line, so that a killed run goes on where it stopped."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ...utils.atomic_io import mend_lines, write_whole
from ...utils.data import get_split, load_preferences

NumberedRow = tuple[int, dict[str, Any]]


class Records:
    """Records of rows, kept in `folder` line by line, if there is one.

    Args:
        folder: where they are kept; `None` keeps them in memory alone.
        name: of what made them, a part of the file's name. kind: of the records, the other part.
        settings: what decides the records.

    Raises:
        ValueError: records that were made with other settings.
    """

    def __init__(self, folder: str | None, name: str, kind: str, settings: dict[str, Any]):
        self.rows: list[dict[str, Any]] = []
        self.path = None
        if folder is None:
            return
        self.path = Path(folder) / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}.{kind}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = self.path.with_suffix(".settings.json")
        settings = json.loads(json.dumps(settings))
        if self.path.exists():
            before = json.loads(state.read_text(encoding="utf-8")) if state.exists() else None
            if before != settings:
                changed = sorted(key for key in settings if (before or {}).get(key) != settings[key])
                raise ValueError(
                    f"{self.path} was made with other settings ({', '.join(changed)} differ). Delete it, or write to "
                    "another folder."
                )
            mend_lines(self.path)
            self.rows = [json.loads(line) for line in self.path.read_text(encoding="utf-8").split("\n") if line]
        write_whole(state, json.dumps(settings, indent=2))

    def append(self, records: list[dict[str, Any]]) -> None:
        self.rows += records
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())

    def complete(
        self,
        rows: Iterator[NumberedRow],
        total: int | None,
        measure: Callable[[list[NumberedRow]], list[dict[str, Any]]],
        *,
        chunk: int,
        **bar: Any,
    ) -> list[dict[str, Any]]:
        """Make the records that are missing.

        Args:
            rows: all numbered rows. total: how many there are, if known. measure: makes a record of each.
            chunk: rows between two writes. bar: options of the progress bar.

        Returns:
            the records, one a row.
        """
        if total is not None and len(self.rows) > total:  # of a run with a larger limit
            self.rows = self.rows[:total]
        with tqdm(total=total, **bar) as progress:
            progress.update(len(self.rows))
            rows = islice(rows, len(self.rows), None)
            while some := list(islice(rows, chunk)):
                self.append(measure(some))
                progress.update(len(some))
        return self.rows


def numbered_rows(data, split: str, limit: int | None) -> tuple[Iterator[NumberedRow], int | None]:
    """Rows of preferences with their numbers, and how many there are, if that is known."""
    total = None
    if isinstance(data, str | os.PathLike):
        path = Path(data)
        if path.suffix == ".jsonl" and path.is_file():
            total = count_lines(path)
        data = get_split(load_preferences(str(data), is_streaming=True), split, str(data))
    elif hasattr(data, "__len__"):
        total = len(data)
    elif not isinstance(data, Iterable):
        raise TypeError(f"`data` is {type(data).__name__}, but must be a path, a Hub name or rows.")
    return islice(enumerate(data), limit), capped(total, limit)


def count_lines(path: Path) -> int:
    """Lines of a file that are not empty."""
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def capped(total: int | None, limit: int | None) -> int | None:
    """How many rows are looked at, as far as is known beforehand."""
    return min((number for number in (total, limit) if number is not None), default=None)
