"""Errors for models, data and files that users name and that do not exist."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError

_MODEL_FILES = ("config.json", "adapter_config.json")
_TOKENIZER_FILES = ("*token*", "*vocab*", "*.model", "merges.txt")


class SourceNotFoundError(FileNotFoundError, ValueError):
    """There is no file, model or data set of a name."""


def not_there(name: str | os.PathLike) -> str:
    """A message that a file or folder does not exist, with the place searched and similar names."""
    return f"{name} is not there (looked from {Path.cwd()}).{close_names(Path(name))}"


def require_file(option: str, name: str | os.PathLike) -> Path:
    """The path of a file that an option names.

    Raises:
        SourceNotFoundError: there is nothing of that name, or it is a folder; the message names close ones beside it.
    """
    path = Path(name)
    if path.is_dir():
        raise SourceNotFoundError(f"`{option}` is {str(name)!r}, which is a folder, but must be a file.{_files(path)}")
    if not path.exists():
        raise SourceNotFoundError(
            f"`{option}` is {str(name)!r}, but there is no such file (looked from {Path.cwd()}).{close_names(path)}"
        )
    return path


def refuse_same_file(written: dict[str, str | os.PathLike | None], read: dict[str, str | os.PathLike | None]) -> None:
    """Raise `ValueError` if a file to write is a file to read, or another file to write.

    Args:
        written, read: path of each option; `None` where it is not set.
    """
    seen = {option: Path(path) for option, path in read.items() if path is not None}
    for option, name in written.items():
        if name is None:
            continue
        path = Path(name)
        for other, earlier in seen.items():
            is_same_file = path.exists() and earlier.exists() and path.samefile(earlier)  # hard links too
            if is_same_file or path.resolve() == earlier.resolve():
                raise ValueError(
                    f"{option} and {other} are the same file, {path}, which would be overwritten. Choose another "
                    f"{option}."
                )
        seen[option] = path


def refuse_same_folder(option: str, written: str | os.PathLike, read: Mapping[str, str | os.PathLike | None]) -> None:
    """Raise `ValueError` if the folder to write is one that is read, by whatever name.

    Args:
        option: of the folder to write. written: its path.
        read: path or Hub name of each option that is read; `None` where it is not set. Files may lie in the folder.
    """
    for other, source in read.items():
        if source is not None and Path(source).is_dir() and Path(source).resolve() == Path(written).resolve():
            raise ValueError(
                f"{option} and {other} are the same folder, {written}: what is written there would be read as part of "
                f"it, or overwrite it. Choose another {option}."
            )


def is_path(name: str) -> bool:
    """Whether a name can only be a file or folder: a name on the Hub has one slash at most."""
    return name.startswith((".", "/", "~")) or "\\" in name or name.rstrip("/").count("/") > 1 or os.path.isabs(name)


@contextmanager
def loading(name: str | os.PathLike, kind: str = "model") -> Iterator[None]:
    """Load a model or data set by folder or Hub name inside the block; errors say what is wrong with the name.

    Args:
        name: what the user wrote. kind: what it should be, for the message: `model`, `teacher`, `dataset`, ...

    Raises:
        SourceNotFoundError: a path that is not there; or a name that is neither a folder nor found on the Hub (which
            may be out of reach); or a folder that holds no model; or a model's name that is a file.
    """
    name, path = str(name), Path(name)
    if not path.exists() and is_path(name):
        raise SourceNotFoundError(f"The {kind} {not_there(name)}")
    if path.is_file() and kind != "dataset":
        raise SourceNotFoundError(f"The {kind} {name} is a file, but must be the folder that holds it: {path.parent}.")
    try:
        yield
    except SourceNotFoundError:  # of another name that this one needs
        raise
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) is not None:  # of the disk, not of the name
            raise
        if not path.exists() and isinstance(error, (OSError, HFValidationError)):
            raise SourceNotFoundError(
                f"The {kind} {name!r} is not a folder here (looked from {Path.cwd()}).{close_names(path)} As a name "
                "on "
                f"the Hub it was not found either: {' '.join(str(error).split())}"
            ) from error
        if kind == "dataset" or not path.is_dir():
            raise
        if not any((path / file).is_file() for file in _MODEL_FILES):
            raise SourceNotFoundError(
                f"The {kind} {name} is a folder without a model: it has no {' and no '.join(_MODEL_FILES)}."
                f"{_models_inside(path)}"
            ) from error
        raise


def load_tokenizer(name: str | os.PathLike, **options: Any):
    """`AutoTokenizer.from_pretrained`, with a clear error for a folder without a tokenizer.

    Raises:
        SourceNotFoundError: the folder has no tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        folder = Path(name)
        if folder.is_dir() and not any(path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)):
            raise SourceNotFoundError(
                f"{name} has no tokenizer (tokenizer.json, tokenizer_config.json). Save the one that the model was "
                "trained with beside it: `tokenizer.save_pretrained(folder)`."
            ) from error
        raise


def close_names(path: Path) -> str:
    """A sentence with names similar to a missing path, from the folder of its first missing part."""
    if str(path).startswith("~") and path.expanduser().exists():
        return f" `~` is not expanded here: write {path.expanduser()}."
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    folder = missing.parent
    if not folder.is_dir():
        return f" {folder} is a file."
    close = difflib.get_close_matches(missing.name, _names(folder), n=3, cutoff=0.6)
    if close:
        return f" Beside it there is {', '.join(str(folder / name) for name in close)}."
    return "" if missing == path else f" There is no folder {missing}."


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _files(folder: Path) -> str:
    files = [name for name in _names(folder) if (folder / name).is_file()]
    return f" It holds {', '.join(files[:5])}." if files else ""


def _models_inside(folder: Path) -> str:
    names = [name for name in _names(folder) if any((folder / name / file).is_file() for file in _MODEL_FILES)]
    return f" These folders in it have one: {', '.join(names[:5])}." if names else ""
