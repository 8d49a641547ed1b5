"""Rows of prompts, with or without candidate completions: loading, checks, tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..utils.json_lines import read_json_lines
from ..utils.sources import require_file
from .checks import check_response, check_text
from .control_tokens import SANITIZE
from .formatting import Text, is_messages, normal_text

TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")  # of a row, for the chat template


def load_prompts(path: str | Path, keep: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of a JSONL file: `prompt`, `id` (by default the line's number), and those keys of `keep` that a row has.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row that is not a JSON object in UTF-8, has no prompt or an empty one, holds half a character, or
            repeats an id; or no row at all.
    """
    path = require_file("prompts", path)
    rows: list[dict[str, Any]] = []
    lines_of_ids: dict[str | int, int] = {}
    for number, row in read_json_lines(path):
        where = f"Line {number} of {path}"
        if not check_prompt(row, where):
            raise ValueError(f"{where} needs a `prompt` that is not empty.")
        name = _check_id(row.get("id", number), "id" in row, lines_of_ids, where)
        lines_of_ids[name] = number
        rows.append({"id": name, "prompt": row["prompt"], **{key: row[key] for key in keep if key in row}})
    if not rows:
        raise ValueError(f"{path} holds no prompts.")
    return rows


def columns_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row has for the chat template beside its prompt."""
    return {name: row[name] for name in TEMPLATE_COLUMNS if row.get(name) is not None}


def _check_id(name: Any, is_given: bool, lines_of_ids: dict[str | int, int], where: str) -> str | int:
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise ValueError(f"{where} has the id {name!r}, but ids must be texts or whole numbers.")
    if name in lines_of_ids:
        own = f"has the id {name!r}" if is_given else f"has no `id`, so its id is the line's number {name}"
        raise ValueError(
            f"{where} {own}, which line {lines_of_ids[name]} has too. Give each row an `id` of its own, or give none."
        )
    return name


def check_prompt(row: dict[str, Any], where: str) -> Text:
    """The prompt of a row.

    Raises:
        ValueError: it is neither a text nor messages; the message begins with `where`.
    """
    if row.get("prompt") is None:
        raise ValueError(f"{where} needs a `prompt` that is a text or a list of messages; its keys are {sorted(row)}.")
    try:
        check_text(row["prompt"], "`prompt`")
    except ValueError as error:
        raise ValueError(f"{where} needs a `prompt` that is a text or a list of messages: {error}") from None
    return row["prompt"]


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
    for number, completion in enumerate(completions):
        try:
            check_text(completion, f"`completions[{number}]`")
            check_response(completion, f"`completions[{number}]`")
        except ValueError as error:
            raise ValueError(f"{where} has `completions` that are neither texts nor messages: {error}") from None
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
