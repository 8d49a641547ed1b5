"""A preference row of any format as one value, and that value with its messages flattened to texts."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...scoring.checks import check_kinds, check_preference_columns, check_response, check_rows_of_data, check_text
from ...scoring.formatting import Text, message_texts, normal_text

PROMPT, CHOSEN, REJECTED = range(3)


@dataclass(frozen=True)
class FlatText:
    """A prompt or response with its messages flattened to one text, which is what the teacher reads.

    Args:
        text: the whole text.
        contents: the text of each message, in order; a message of several text parts gives several, and a plain text
            is one content.
        starts: where each content begins in `text`.
    """

    text: str
    contents: tuple[str, ...]
    starts: tuple[int, ...]

    @classmethod
    def flatten(cls, value: Text, *, is_prompt: bool) -> FlatText:
        """Flatten a text or messages. Prompts name the role of each message; a response of one message does not."""
        if isinstance(value, str):
            return cls(value, (value,), (0,))
        text, contents, starts = "", [], []
        has_roles = is_prompt or len(value) > 1
        for message in value:
            text += "\n" if text else ""
            text += f"{message['role']}: " if has_roles else ""
            for number, content in enumerate(message_texts(message)):
                text += " " if number else ""
                contents.append(content)
                starts.append(len(text))
                text += content
        return cls(text, tuple(contents), tuple(starts))


@dataclass(frozen=True)
class Preference:
    """One preference with its prompt made explicit; text or messages throughout."""

    prompt: Text
    chosen: Text
    rejected: Text

    @property
    def is_conversation(self) -> bool:
        return not isinstance(self.chosen, str)

    @property
    def key(self) -> int:
        """A 32-bit checksum of this preference, the same in every run and process."""
        content = json.dumps([self.prompt, self.chosen, self.rejected], sort_keys=True, default=str)
        return zlib.crc32(content.encode())

    def flatten(self) -> tuple[FlatText, FlatText, FlatText]:
        """Prompt, chosen and rejected as flat texts."""
        return (
            FlatText.flatten(self.prompt, is_prompt=True),
            FlatText.flatten(self.chosen, is_prompt=False),
            FlatText.flatten(self.rejected, is_prompt=False),
        )


def read_preference(example: dict[str, Any]) -> Preference:
    """The preference in a row of any format that `RewardTrainer` takes, its messages in their normal form.

    Raises:
        ValueError: a missing column; one that is neither text nor messages; a response without messages; columns of
            different kinds.
    """
    if not isinstance(example, Mapping):
        raise ValueError(
            f"A preference is {example!r:.80}, but must be a row with the columns `chosen` and `rejected` (a `dict`)."
        )
    check_preference_columns(example)
    names = ("prompt", "chosen", "rejected")
    values: dict[str, Any] = {name: normal_text(example[name]) for name in names if name in example}
    if values.get("prompt", "") is None:
        del values["prompt"]
    for name, value in values.items():
        check_text(value, f"Column `{name}`")
        if name != "prompt":
            check_response(value, f"Column `{name}`")
    check_kinds(values)
    prompt, chosen, rejected = values.get("prompt"), values["chosen"], values["rejected"]
    if prompt is None:
        size = _common_prefix(chosen, rejected)
        prompt, chosen, rejected = chosen[:size], chosen[size:], rejected[size:]
    return Preference(prompt, chosen, rejected)


def read_preferences(rows: Any, name: str) -> list[Preference]:
    """The preferences of rows of any format; those that are read already stay as they are.

    Args:
        rows: a dataset, a stream, or any other collection of rows. name: what they are, for messages.

    Raises:
        TypeError: no collection of rows. ValueError: a row that is not a preference, named by its number; no row.
    """
    check_rows_of_data(name, rows)
    found = []
    for number, row in enumerate(rows):
        try:
            found.append(row if isinstance(row, Preference) else read_preference(row))
        except ValueError as error:
            raise ValueError(f"`{name}`: Row {number}: {error}") from None
    if not found:
        raise ValueError(f"`{name}` is empty. Give it at least one row.")
    return found


def _common_prefix(chosen: Text, rejected: Text) -> int:
    size = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        size += 1
    if isinstance(chosen, str):  # never in the middle of a word
        while size and not chosen[size - 1].isspace():
            size -= 1
    elif size and size in (len(chosen), len(rejected)):  # equal sides: the last message is the response
        size -= 1
    return size
