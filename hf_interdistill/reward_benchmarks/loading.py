"""Rows of a benchmark, from the Hub or from local files, each with its location."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..utils.json_lines import read_json_lines
from ..utils.sources import not_there
from .items import Benchmark, Item, Row

FORMATS = (".jsonl", ".json", ".parquet")


def load_items(benchmark: Benchmark, data: str | None = None) -> list[Item]:
    """The items of a benchmark.

    Args:
        benchmark: which one.
        data: a file (`.jsonl`, `.json`, `.parquet`) or a folder of files in the benchmark's published format; by
            default the published data set from the Hub.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a file that cannot be read, a row in another format (the message names file and line), or no row.
    """
    rows = _local_rows(Path(data)) if data is not None else _hub_rows(benchmark)
    items = [item for row in rows if (item := benchmark.parse(row)) is not None]
    if not items:
        raise ValueError(f"{data or benchmark.hub[0].path} holds no row that {benchmark.name} counts.")
    return items


def _local_rows(path: Path) -> Iterator[Row]:
    if not path.exists():
        raise FileNotFoundError(not_there(path))
    if path.is_file():
        # The name of the folder may be the subset's, as in LLMBar's Natural/dataset.json.
        yield from _file_rows(path, f"{path.parent.name}/{path.stem}")
        return
    files = sorted(file for file in path.rglob("*") if file.suffix in FORMATS)
    if not files:
        raise ValueError(f"{path} holds no data file ({', '.join(FORMATS)}).")
    for file in files:
        yield from _file_rows(file, str(file.relative_to(path).with_suffix("")))


def _file_rows(path: Path, part: str) -> Iterator[Row]:
    readers = {".jsonl": _read_lines, ".json": _read_json, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise ValueError(f"{path}: cannot read `{path.suffix}` files; use one of {', '.join(FORMATS)}.")
    for location, values in readers[path.suffix](path):
        if not isinstance(values, dict):
            raise ValueError(f"{location} is not a JSON object, but {values!r:.80}.")
        yield Row(location, part, values)


def _read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, row in read_json_lines(path):
        yield f"{path}, line {number}", row


def _read_json(path: Path) -> Iterator[tuple[str, Any]]:
    """A list of rows; or, as many `.json` files on the Hub are, one row per line."""
    text = path.read_text(encoding="utf-8")
    if not text.lstrip().startswith("["):
        yield from _read_lines(path)
        return
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    for number, values in enumerate(rows, 1):
        yield f"{path}, row {number}", values


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    from datasets import Dataset

    for number, values in enumerate(Dataset.from_parquet(glob.escape(str(path))), 1):
        yield f"{path}, row {number}", values


def _hub_rows(benchmark: Benchmark) -> Iterator[Row]:
    from datasets import load_dataset

    for source in benchmark.hub:
        rows = load_dataset(source.path, data_files=source.data_files, split=source.split)
        name = source.data_files or f"{source.path}, split {source.split}"
        for number, values in enumerate(rows, 1):
            yield Row(f"{name}, row {number}", source.part or source.split, values)
