"""Rows of prompts, with or without candidate completions: loading, checks, tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..utils.sources import require_file
from .control_tokens import SANITIZE
from .formatting import Text, is_messages, normal_text


def load_prompts(path: str | Path, keep: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of a JSONL file: `prompt`, `id` (by default the line's number), and those keys of `keep` that a row has.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row that is no JSON object in UTF-8, has no prompt or an empty one, holds half a character, or
            repeats an id; or no row at all.
    """
    path = require_file("prompts", path)
    rows: list[dict[str, Any]] = []
    lines_of_ids: dict[str | int, int] = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            row = _parse_line(line, f"Line {number} of {path}")
            if row is None:
                continue
            name = _check_id(row.get("id", number), "id" in row, lines_of_ids, f"Line {number} of {path}")
            lines_of_ids[name] = number
            rows.append({"id": name, "prompt": row["prompt"], **{key: row[key] for key in keep if key in row}})
    if not rows:
        raise ValueError(f"{path} holds no prompts.")
    return rows


def _parse_line(line: bytes, where: str) -> dict[str, Any] | None:
    """A row with a prompt, or `None` for an empty line."""
    try:
        text = line.decode("utf-8-sig")  # editors may begin a file with a byte order mark
    except UnicodeDecodeError as error:
        reason = f"{error.reason}, byte {error.start}"
        raise ValueError(f"{where} is not UTF-8 ({reason}). Save the file as UTF-8.") from None
    if not text.strip():
        return None
    try:
        row = json.loads(text)
    except json.JSONDecodeError:
        row = None
    if not isinstance(row, dict):
        raise ValueError(f'{where} is no JSON object. Write rows like {{"prompt": "..."}}.')
    refuse_half_characters(row, where)
    if not check_prompt(row, where):
        raise ValueError(f"{where} needs a `prompt` that is not empty.")
    return row


def _check_id(name: Any, is_given: bool, lines_of_ids: dict[str | int, int], where: str) -> str | int:
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise ValueError(f"{where} has the id {name!r}, but ids must be texts or whole numbers.")
    if name in lines_of_ids:
        own = f"has the id {name!r}" if is_given else f"has no `id`, so its id is the line's number {name}"
        raise ValueError(
            f"{where} {own}, which line {lines_of_ids[name]} has too. Give each row an `id` of its own, or give none."
        )
    return name


def refuse_half_characters(value: Any, where: str) -> None:
    """Raise `ValueError` if a text in a JSON value holds half of a surrogate pair, which no tokenizer reads."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    half = re.search("[\ud800-\udfff]", text)
    if half:
        raise ValueError(
            f"{where} holds half a character ({half[0]!r} after {text[max(0, half.start() - 40) : half.start()]!r}), "
            "one of a surrogate pair, which is no Unicode text. Correct the source, or "
            "`text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')`."
        )


def check_prompt(row: dict[str, Any], where: str) -> Text:
    """The prompt of a row.

    Raises:
        ValueError: it is neither a text nor messages; the message begins with `where`.
    """
    prompt = row.get("prompt")
    if isinstance(prompt, str) or is_messages(prompt):
        return prompt
    raise ValueError(f"{where} needs a `prompt` that is a text or a list of messages, not {prompt!r:.120}.")


def check_completions(row: dict[str, Any], where: str, at_least: int) -> list[Text]:
    """The candidate completions of a row.

    Raises:
        ValueError: there are fewer than `at_least`, or one is neither a text nor messages; the message begins with
            `where`.
    """
    completions = row.get("completions")
    if not isinstance(completions, list) or len(completions) < at_least:
        raise ValueError(
            f"{where} has `completions` {completions!r:.120}, but must have a list of at least {at_least}."
        )
    if not all(isinstance(each, str) or is_messages(each) for each in completions):
        raise ValueError(f"{where} has `completions` that are neither texts nor messages.")
    return completions


def tokenize_prompt(tokenizer, prompt: Text, template_kwargs: Mapping[str, Any] | None = None) -> torch.Tensor:
    """Token ids `(1, length)` of a text, or of messages with the generation prompt.

    Args:
        template_kwargs: what the chat template gets beside the messages, as `formatting.template_kwargs` makes it.
    """
    if not is_messages(prompt):
        return torch.tensor([tokenizer(prompt)["input_ids"]], dtype=torch.long)
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "The prompts are messages, but the tokenizer has no chat template. Use prompts of plain text, or a model "
            "with a chat template."
        )
    kwargs = {**(template_kwargs or {}), "add_generation_prompt": True}
    messages = normal_text(prompt)
    if kwargs.get(SANITIZE):
        ids = tokenizer.apply_chat_template(messages, return_dict=True, **kwargs)["input_ids"]
    else:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor([ids], dtype=torch.long)
