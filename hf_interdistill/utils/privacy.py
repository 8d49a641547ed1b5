"""Keeps this machine's paths and its owner's tokens out of what is published, logged or raised."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}|(?<=Bearer )\S+")
# At least two parts, so that tokens of a vocabulary such as "/" are not paths.
_PATH = re.compile(r"(~|[A-Za-z]:)?[/\\][^\s/\\]+[/\\][^\n]*")
# The same inside a word, such as a JSON value; an address (`http://host/a/b`) is none.
_PATH_INSIDE = re.compile(r"(?<![\w.:/\\~])(~|[A-Za-z]:)?[/\\]+[^\s\"'/\\,:{}\[\]]+[/\\][^\s\"',{}\[\]]*")
_OWNER = re.compile(r"^(~|([A-Za-z]:)?[/\\]+(home|Users)[/\\]+[^/\\]+|/root)(?=[/\\]|$)")
_USER_OF_URL = re.compile(r"(?<=://)[^/@\s]+@")
_HOME = re.compile(r"(?<![\w.:/-])(/(home|Users|root)/|[A-Za-z]:\\Users\\)\w")


def public_name(name: str | os.PathLike[str]) -> str:
    """A name for logs, reports and model cards: the last two parts of what is on this machine, so that no path and no
    user's name is published; any other name as it is."""
    if not name or not Path(name).exists():
        return str(name)
    path = Path(name).resolve()
    return path.name if path.parent in (Path.home(), Path.home().parent) else "/".join(path.parts[-2:])


def public_word(word: str) -> str:
    """A word of a command line that may be published: no tokens, and of absolute paths the last two parts alone.

    Relative paths stay, so that the command still works where it was given. `KEY=VALUE` is read part by part.
    """
    key, separator, value = word.partition("=")
    if separator and not _PATH.match(key):
        return f"{public_word(key)}={public_word(value)}"
    if _PATH.match(word):  # the whole word, since a folder's name may have spaces
        return redact(_last_parts(word))
    return redact(_USER_OF_URL.sub("", _PATH_INSIDE.sub(lambda found: _last_parts(found[0]), word)))


def _last_parts(path: str) -> str:
    """The last two parts of a path, without the folder that is named after a user."""
    return "/".join([part for part in re.split(r"[/\\]", _OWNER.sub("", path)) if part][-2:]) or "~"


def hub_name(name: str | None) -> str | None:
    """The name itself if it can be that of a repository of the Hub, `None` for a folder of this machine."""
    if not name or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def redact(text: str, token: str | None = None) -> str:
    """A text without tokens of the Hub, and without the one given."""
    return _TOKEN.sub("<token>", text.replace(token, "<token>") if token else text)


def refuse_private_values(file: str, values: Any) -> None:
    """Raise `ValueError` if a JSON or YAML value holds a path of this machine or a token of the Hub."""
    for key, text in _texts(values):
        if _is_private(text) or _PATH.fullmatch(text):
            raise ValueError(_refusal(f"`{key}` in {file}"))


def refuse_private_text(file: str, text: str) -> None:
    """Raise `ValueError` if a line of a text names this machine's folders or holds a token of the Hub."""
    for number, line in enumerate(text.splitlines(), 1):
        if _is_private(line):
            raise ValueError(_refusal(f"Line {number} of {file}"))


def _is_private(text: str) -> bool:
    """Whether a text holds a token, a folder below somebody's home, or this process's working folder."""
    places = [str(place) for place in (Path.home(), Path.cwd()) if len(place.parts) > 2]
    return bool(_TOKEN.search(text) or _HOME.search(text)) or any(place in text for place in places)


def _refusal(where: str) -> str:
    return (
        f"{where} holds a path of this machine or a token, and what is pushed can be read by others. Remove it or put "
        "a public name there, then push again."
    )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested values, with its dotted key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from _texts(entry, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry, key)
