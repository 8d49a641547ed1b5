"""Rows of prompts, with or without candidate completions: loading, checks, tokens."""

from __future__ import annotations

import json
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
        ValueError: a row that is no JSON object, has no prompt or an empty one, or repeats an id; or no row at all.
    """
    path = require_file("prompts", path)
    rows, seen = [], set()
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"Line {number} of {path}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            if not isinstance(row, dict):
                raise ValueError(f'{where} is no JSON object. Write rows like {{"prompt": "..."}}.')
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
