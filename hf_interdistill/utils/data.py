"""Loads preference data from the Hub or from local files."""

from __future__ import annotations

import glob
import json
from pathlib import Path

from datasets import DatasetDict, IterableDatasetDict, load_dataset
from datasets.exceptions import DatasetsError

from .json_lines import read_json_lines
from .sources import loading, not_there

_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def load_preferences(name: str, config: str | None = None, is_streaming: bool = False):
    """All splits of a preference dataset.

    Args:
        name: Hub name; a folder with one file per split (`train.jsonl`, `test.jsonl`); or one file, which becomes the
            split `train`.
        config: configuration of a Hub dataset.
        is_streaming: read as it is used, for what does not fit on disk.

    Raises:
        FileNotFoundError: a path that is not there, or a name that is not found on the Hub either.
        ValueError: a folder or a file without data that can be read, or with a configuration; a line that is not JSON
            object, named by file and number.
    """
    path = Path(name)
    if config is not None and path.exists():
        raise ValueError(
            f"`dataset_config` is {config!r}, but {name} is on this machine, and only datasets of the Hub have "
            "configurations. Leave it out, or name the folder of that configuration."
        )
    if path.is_file():
        if path.suffix not in _FORMATS:
            raise ValueError(f"{name}: cannot read `{path.suffix}` files; use one of {', '.join(_FORMATS)}.")
        return _load_files(_FORMATS[path.suffix], {"train": name}, is_streaming)
    if path.is_dir():
        files = {file.stem: str(file) for file in sorted(path.iterdir()) if file.suffix in _FORMATS}
        if not files:
            raise ValueError(f"{name} holds no data file ({', '.join(_FORMATS)}); expected train.jsonl and the like.")
        kinds = {_FORMATS[Path(file).suffix] for file in files.values()}
        if len(kinds) > 1:
            raise ValueError(f"{name} mixes data files of several formats: {sorted(files.values())}.")
        return _load_files(kinds.pop(), files, is_streaming)
    if path.suffix in _FORMATS:
        raise FileNotFoundError(not_there(name))
    with loading(name, "dataset"):
        return load_dataset(name, config, streaming=is_streaming)


def _load_files(kind: str, files: dict[str, str], is_streaming: bool):
    for file in files.values() if kind == "json" else ():
        _check_json(Path(file))
    try:
        patterns = {split: glob.escape(file) for split, file in files.items()}
        return load_dataset(kind, data_files=patterns, streaming=is_streaming)
    except (DatasetsError, FileNotFoundError) as error:  # an empty file counts as missing
        raise ValueError(
            f"{', '.join(files.values())} cannot be read as {kind} ({error.__cause__ or error}). Every row of every "
            "file needs the same columns, with values of one kind, and each file at least one row."
        ) from error


def _check_json(path: Path) -> None:
    """Raise `ValueError` for a file that is neither JSON Lines nor a list of JSON objects, or has no rows."""
    with path.open("rb") as file:
        start = file.read(1000).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        if not sum(1 for _ in read_json_lines(path)):
            raise ValueError(f"{path} is empty. Write one JSON object per line (JSON Lines).")
        return
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"Line {error.lineno} of {path} is not JSON ({error.msg}). Correct it.") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} is a JSON list without rows, or with other entries than objects. Write one per row.")


def get_split(splits: DatasetDict | IterableDatasetDict, split: str, name: str):
    """One split, or an error that names those there are."""
    if split not in splits:
        raise ValueError(f"{name} has no split `{split}`; it has {', '.join(splits)}.")
    return splits[split]
