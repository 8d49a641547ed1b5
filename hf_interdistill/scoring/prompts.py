"""Rows of prompts, with or without candidate completions: loading, checks, tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..utils.json_lines import read_json_lines
from .checks import check_response, check_text
from .formatting import Text, is_messages


def load_prompts(path: str | Path, keep: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of a JSONL file: `prompt`, `id` (by default the line's number), and those keys of `keep` that a row has.

    Raises:
        ValueError: a row that is no JSON object, has no prompt or an empty one, or repeats an id; or no row at all.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`prompts` is {str(path)!r}, but there is no such file.")
    rows, seen = [], set()
    for number, row in read_json_lines(path):
        where = f"Line {number} of {path}"
        if not check_prompt(row, where):
            raise ValueError(f"{where} needs a `prompt` that is not empty.")
        name = row.get("id", number)
        if not isinstance(name, str | int) or name in seen:
            raise ValueError(f"{where} has the id {name!r}, but ids must be texts or numbers, each used once.")
        seen.add(name)
        rows.append({"id": name, "prompt": row["prompt"], **{key: row[key] for key in keep if key in row}})
    if not rows:
        raise ValueError(f"{path} holds no prompts.")
    return rows


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


def tokenize_prompt(tokenizer, prompt: Text) -> torch.Tensor:
    """Token ids `(1, length)` of a text, or of messages with the generation prompt."""
    if not is_messages(prompt):
        return torch.tensor([tokenizer(prompt)["input_ids"]], dtype=torch.long)
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "The prompts are messages, but the tokenizer has no chat template. Use prompts of plain text, or a model "
            "with a chat template."
        )
    text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], dtype=torch.long)
