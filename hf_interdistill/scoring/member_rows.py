"""Rows of an ensemble whose members read different tokens: one row for each member."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .formatting import Text
from .text_scorer import TextScorer


class MemberRows:
    """A text as each member reads it; its length is that of the longest, and a slice cuts each.

    Args:
        rows: of each member.
    """

    def __init__(self, rows: Sequence[Any]):
        self.rows = list(rows)

    def __len__(self) -> int:
        return max(len(row) for row in self.rows)

    def __getitem__(self, key: Any) -> Any:
        return MemberRows([row[key] for row in self.rows]) if isinstance(key, slice) else self.rows[key]


class MemberFormatter:
    """Formats a text for each member; stands for a `RewardFormatter`.

    Args:
        members: the scorers, each with its own formatter.
    """

    def __init__(self, members: Sequence[TextScorer]):
        self._formatters = [member.formatter for member in members]

    def check(self, prompt: Text | None, completion: Text) -> None:
        """What any member refuses, see `RewardFormatter.check`."""
        for formatter in self._formatters:
            formatter.check(prompt, completion)

    def spells_control_token(self, messages: Sequence[dict[str, Any]]) -> bool:
        """Whether the text does so for any member."""
        return any(formatter.spells_control_token(messages) for formatter in self._formatters)

    def encode(self, prompt: Text | None, completion: Text, **chat_template_kwargs: Any) -> MemberRows:
        """The row of each member."""
        return MemberRows([each.encode(prompt, completion, **chat_template_kwargs) for each in self._formatters])


def text_key(scorer: TextScorer) -> Any:
    """Equal for scorers that make the same rows of the same texts."""
    return "rows" if scorer.tokenizer is None else tokenizer_key(scorer.tokenizer)  # a server formats by itself


def tokenizer_key(tokenizer: Any) -> Any:
    """Equal for tokenizers that make the same tokens of the same texts and messages, where that can be told."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return id(tokenizer)
    parts = json.loads(backend.to_str())
    settings = [tokenizer.chat_template, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id]
    return json.dumps([{**parts, "padding": None, "truncation": None}, settings], sort_keys=True)
