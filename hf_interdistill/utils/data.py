"""Loads preference data from the Hub or from local files."""

from __future__ import annotations

import glob
from pathlib import Path

from datasets import DatasetDict, IterableDatasetDict, load_dataset

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
        ValueError: a folder or a file without data that can be read, or with a configuration.
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
        return load_dataset(_FORMATS[path.suffix], data_files={"train": glob.escape(name)}, streaming=is_streaming)
    if path.is_dir():
        files = {file.stem: glob.escape(str(file)) for file in sorted(path.iterdir()) if file.suffix in _FORMATS}
        if not files:
            raise ValueError(f"{name} holds no data file ({', '.join(_FORMATS)}); expected train.jsonl and the like.")
        kinds = {_FORMATS[Path(file).suffix] for file in files.values()}
        if len(kinds) > 1:
            raise ValueError(f"{name} mixes data files of several formats: {sorted(files.values())}.")
        return load_dataset(kinds.pop(), data_files=files, streaming=is_streaming)
    if path.suffix in _FORMATS:
        raise FileNotFoundError(not_there(name))
    with loading(name, "dataset"):
        return load_dataset(name, config, streaming=is_streaming)


def get_split(splits: DatasetDict | IterableDatasetDict, split: str, name: str):
    """One split, or an error that names those there are."""
    if split not in splits:
        raise ValueError(f"{name} has no split `{split}`; it has {', '.join(splits)}.")
    return splits[split]
