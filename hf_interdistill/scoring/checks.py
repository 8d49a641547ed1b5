"""The one place that checks texts and messages: of the trainer, the teacher, the scorer and every command."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

from ..utils.fields import nearest_name
from .normal_form import is_missing

_RESPONSES = ("chosen", "rejected")
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_KINDS = "a text (`str`) or messages (`[{'role': ..., 'content': ...}, ...]`)"


def check_text(value: Any, name: str, *, template: str | None = None) -> None:
    """Check that a prompt or a completion is a text or a list of messages. An empty list passes.

    Args:
        value: what to check.
        name: what it is, for the message (``Column `chosen` ``).
        template: the chat template; roles that it names are allowed beside the usual ones. `None`: roles are not
            checked.

    Raises:
        ValueError: it is neither; the message gives the value, the rule and the fix.
    """
    if isinstance(value, str):
        return
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise ValueError(f"{name} holds {_shown(value)}, but must be {_KINDS}. {_fix(value)}")
    for number, message in enumerate(value):
        _check_message(message, f"Message {number} of {name[0].lower() + name[1:]}", template)


def check_preference_columns(columns: Iterable[str], where: str = "A preference") -> None:
    """Raise `ValueError` if `chosen` or `rejected` is missing, naming the columns that resemble it.

    Args:
        columns: those that are there.
        where: what they are the columns of, for the message.
    """
    columns = list(columns)
    missing = [column for column in _RESPONSES if column not in columns]
    if not missing:
        return
    spare = [column for column in columns if column not in (*_RESPONSES, "prompt")]
    hints = {column: nearest_name(column, spare, cutoff=0.5) for column in missing}
    near = "; ".join(f"is `{hint}` meant as `{column}`?" for column, hint in hints.items() if hint)
    raise ValueError(
        f"{where} has no column {' and '.join(f'`{column}`' for column in missing)}; its columns are {columns}. A "
        "preference dataset has `chosen`, `rejected` and, explicit or within them, `prompt`"
        f"{': ' + near if near else ''}. Rename with `dataset.rename_column(...)`."
    )


def check_kinds(values: Mapping[str, Any]) -> None:
    """Raise `ValueError` if some of the columns of a row are texts and others messages."""
    kinds = {name: "text" if isinstance(value, str) else "messages" for name, value in values.items()}
    if len(set(kinds.values())) < 2:
        return
    fix = "Use one kind for all."
    sides = [kind for name, kind in kinds.items() if name != "prompt"]
    if kinds.get("prompt") == "text" and set(sides) == {"messages"}:
        fix = (
            "Where the responses hold the whole conversation, remove the prompt (`dataset.remove_columns('prompt')`); "
            "otherwise make it a message (`[{'role': 'user', 'content': prompt}]`)."
        )
    shown = ", ".join(f"`{name}`: {kind}" for name, kind in kinds.items())
    raise ValueError(f"The columns mix text and messages in one row ({shown}). {fix}")


def check_response(value: Any, name: str) -> None:
    """Raise `ValueError` for a response without messages: there is nothing to score."""
    if isinstance(value, list) and not value:
        raise ValueError(f"{name} is an empty conversation (`[]`). Give it at least one message, or remove the row.")


def as_list(name: str, values: Any) -> list:
    """The entries of an argument that holds one entry per row: a list, tuple, column, array or generator.

    Raises:
        TypeError: a text, a mapping, a set, or no collection at all.
    """
    if isinstance(values, str | bytes | Mapping | set | frozenset) or not isinstance(values, Iterable):
        fix = f"Put it in a list: `[{name[:-1]}]`." if isinstance(values, str | Mapping) else "Pass a list."
        if values is None:
            fix = "Pass a list; its entries may be `None` where the completion holds the whole exchange."
        raise TypeError(
            f"`{name}` is {_shown(values)} ({type(values).__name__}), but must be a list with one entry per row. {fix}"
        )
    if isinstance(values, Sized) and type(values).__name__ in (
        "DataFrame",
        "Table",
    ):
        raise TypeError(
            f"`{name}` is a {type(values).__name__} with {len(values)} rows, but must be one column of it: "
            "`frame['prompt']`."
        )
    return list(values)


def check_rows_of_data(name: str, data: Any) -> None:
    """Check that an argument is one collection of rows, not several splits or a table that iterates over columns.

    Raises:
        TypeError: it is not.
    """
    if isinstance(data, Mapping):
        raise TypeError(
            f"`{name}` is a {type(data).__name__} with the keys {', '.join(map(str, data))}, but must be one dataset "
            "or a list of rows. Choose one split."
        )
    if type(data).__module__.split(".")[0] in ("pandas", "polars", "pyarrow"):
        raise TypeError(
            f"`{name}` is a {type(data).__name__} of {type(data).__module__.split('.')[0]}, but must be a dataset or "
            "a list of rows. Convert it: `Dataset.from_pandas(frame)`, `Dataset.from_polars(frame)`, or "
            "`Dataset(table)` of pyarrow."
        )
    if isinstance(data, str) or not isinstance(data, Iterable):
        raise TypeError(
            f"`{name}` is {_shown(data)}, but must be a dataset or a list of rows (`load_dataset` makes one)."
        )


def check_same_length(columns: Mapping[str, Sequence]) -> None:
    """Raise `ValueError` if the columns have different lengths."""
    if len({len(values) for values in columns.values()}) > 1:
        shown = " and ".join(f"{len(values)} {name}" for name, values in columns.items())
        raise ValueError(f"There are {shown}, but each row needs one of each. Pass lists of equal length.")


def _check_message(message: dict, name: str, template: str | None) -> None:
    if "role" not in message and "from" in message:
        raise ValueError(
            f"{name} is {_shown(message)}, a message of ShareGPT's format (`from`, `value`), but must have `role` and "
            "`content`. Convert it: `dataset.map(trl.maybe_convert_to_chatml)` renames the keys; then name the roles "
            "`user` and `assistant` instead of `human` and `gpt`."
        )
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise ValueError(
            f"{name} is {_shown(message)}, but its `role` must be a text such as 'user' or 'assistant'. Add it."
        )
    if role not in _ROLES and template is not None and not any(f"{q}{role}{q}" in template for q in "'\""):
        near = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}.get(role.lower())
        fix = f"Rename it to '{near}'." if near else "Rename it, or write a chat template that names it."
        raise ValueError(
            f"{name} has the unknown role {role!r}; known are {', '.join(_ROLES)} and those that the chat template "
            f"names. {fix}"
        )
    _check_content(message, name)


def _check_content(message: dict, name: str) -> None:
    content = message.get("content")
    if content is None:
        if any(value is not None for key, value in message.items() if key not in ("role", "content", "name")):
            return  # tool calls, or reasoning alone
        raise ValueError(
            f"{name} is {_shown(message)}, without `content`. Give it a text (empty, if it has none), or remove it."
        )
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise ValueError(
            f"{name} has the `content` {_shown(content)}, but content is a text or a list of parts. {_fix(content)}"
        )
    for part in content:
        if not isinstance(part, dict) or (part.get("type") == "text" and not isinstance(part.get("text"), str)):
            raise ValueError(
                f"{name} has the part {_shown(part)}, but a part is like {{'type': 'text', 'text': ...}}. Correct it."
            )
        if part.get("type") != "text":
            raise ValueError(
                f"{name} has a part of type {part.get('type')!r}, but reward models here read text alone. Remove the "
                "part, or the row."
            )


def _fix(value: Any) -> str:
    if value is None:
        return "It is missing (null): fill it in, or remove the row."
    if is_missing(value):
        return "NaN marks an empty cell: fill it in, or remove the row."
    if isinstance(value, numbers.Number):
        return "Convert it with `str(...)`, if it is meant as text."
    if isinstance(value, bytes):
        return "Decode it: `value.decode('utf-8')`."
    if isinstance(value, dict) and ("role" in value or "from" in value):
        return "This is one message: put it in a list."
    if isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
        return "This is a list of texts: give each its own row."
    if isinstance(value, list) and value and all(isinstance(each, list) for each in value):
        return "This is a list of conversations: give each its own row."
    return "Convert it to one of these."


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
