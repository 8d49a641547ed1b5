"""Where the records of a diagnosis are kept, and the rows that they are made from."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ...scoring.checks import check_rows_of_data
from ...scoring.normal_form import normal_value
from ...utils.data import get_split, load_preferences
from ...utils.digests import digest_of
from ...utils.jsonl_jobs import JsonlJob
from ...utils.privacy import public_name

IndexedRow = tuple[int, dict[str, Any]]
_DIGEST = "row_digest"
Measure = Callable[[list[IndexedRow]], list[dict[str, Any]]]


@dataclass(frozen=True)
class RecordStore:
    """The records of one diagnosis: a JSONL for each kind, which a killed run resumes.

    Args:
        folder: where they are kept; `None` keeps them in memory only.
        name: the diagnosed model's name.
        chunk_size: rows between two writes.
        is_progress_shown: whether there are progress bars.
    """

    folder: str | None
    name: str
    chunk_size: int
    is_progress_shown: bool

    def collect(
        self,
        file: tuple[str, str],
        settings: dict[str, Any],
        rows: tuple[Iterator[IndexedRow], int | None],
        measure: Measure,
        **bar: Any,
    ) -> list[dict[str, Any]]:
        """The records of all rows; those that are missing are made.

        Args:
            file: name of the model that made the records and their kind, the two parts of the file's name.
            settings: what the records depend on. rows: all rows, and how many there are, if known.
            measure: makes a record of each row. bar: options of the progress bar.

        Raises:
            ValueError: there are records that were made with other settings, or of other rows.
        """
        name, kind = file
        path = None if self.folder is None else Path(self.folder) / f"{_safe(name)}.{kind}.jsonl"
        indexed, total = rows
        bar["disable"] = not self.is_progress_shown
        with JsonlJob(path) as job:
            job.open(settings)
            checked = _CheckedRows(indexed, job)
            job.complete(checked, checked.measuring(measure), chunk_size=self.chunk_size, total=total, **bar)
            return list(islice(job.rows(), checked.count))  # an earlier run may have had a larger limit


class _CheckedRows:
    """Rows, each compared with the one that an earlier run made the record in its place of.

    Args:
        rows: with their index. job: whose rows are the records.
    """

    def __init__(self, rows: Iterator[IndexedRow], job: JsonlJob):
        self._rows, self._job, self.count = rows, job, 0
        self._earlier = [record.get(_DIGEST) for record in job.rows()]

    def __iter__(self) -> Iterator[IndexedRow]:
        for number, row in self._rows:
            if self.count < len(self._earlier) and self._earlier[self.count] != _digest(row):
                raise ValueError(
                    f"{self._job.output} holds a record in line {self.count + 1}, but the rows of the data have "
                    f"changed since: row {number} is not the one that it was made of (or the record is of a "
                    "version that noted no rows). Delete the folder of the records, or choose another."
                )
            self.count += 1
            yield number, row

    def measuring(self, measure: Measure) -> Measure:
        """A measure whose records have the digests of their rows."""

        def measured(rows: list[IndexedRow]) -> list[dict[str, Any]]:
            return [{**record, _DIGEST: _digest(row)} for record, (_, row) in zip(measure(rows), rows, strict=True)]

        return measured


def _digest(row: dict[str, Any]) -> str:
    return digest_of([normal_value(row)])


@dataclass(frozen=True)
class PairData:
    """The preferences of a diagnosis.

    Args:
        data: file, folder or Hub name (read as a stream), or rows. split: of the data, where it has several.
    """

    data: Any
    split: str

    @property
    def name(self) -> str:
        """For reports."""
        return public_name(self.data) if isinstance(self.data, str | os.PathLike) else "rows"

    def rows(self, limit: int | None) -> tuple[Iterator[IndexedRow], int | None]:
        """Rows with their index, and how many there are, if that is known."""
        data, total = self.data, None
        if isinstance(data, str | os.PathLike):
            path = Path(data)
            if path.suffix == ".jsonl" and path.is_file():
                total = count_lines(path)
            data = get_split(load_preferences(str(data), is_streaming=True), self.split, str(data))
        else:
            check_rows_of_data("data", data)
            total = len(data) if hasattr(data, "__len__") else None
        return islice(enumerate(data), limit), smaller(total, limit)


def count_lines(path: Path) -> int:
    """Lines of a file that are not empty."""
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def smaller(total: int | None, limit: int | None) -> int | None:
    """The smaller of two numbers, of which either may be unknown."""
    return min((number for number in (total, limit) if number is not None), default=None)


def _safe(name: str) -> str:
    """A name as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name)
