"""A pair as token rows in which the positions of the contents are known, and rows with parts removed.

*How parts are removed.* The tokens are left out of the row and the others keep their positions. For a decoder that
is the same as hiding them from attention (checked by a test), but needs no mask that some attention kernels lack, and
costs less. Template tokens (roles, BOS, EOS, separators) always stay, so the text keeps its form, and the scored token
and the first token, an attention sink, are never touched: only content is lost. An encoder counts positions
by itself, so for it the gaps close.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...interaction.data.pairs import read_preference
from ...scoring.formatting import RewardFormatter, Text, message_texts, template_kwargs


@dataclass(frozen=True)
class TokenRow:
    """Tokens of one text.

    Args:
        ids: all tokens. prompt, response: positions of the tokens that hold content of each.
        messages: the positions of `prompt` by message; one entry for a plain text.
    """

    ids: list[int]
    prompt: list[int]
    response: list[int]
    messages: list[list[int]]

    @property
    def content(self) -> list[int]:
        return self.prompt + self.response

    def without(self, positions: Sequence[int]) -> tuple[list[int], list[int]]:
        """Ids and positions of the row with some positions left out."""
        gone = set(positions)
        kept = [position for position in range(len(self.ids)) if position not in gone]
        return [self.ids[position] for position in kept], kept

    def without_first(self, fraction: float) -> tuple[list[int], list[int]]:
        return self.without(self.content[: round(fraction * len(self.content))])

    def without_response_start(self, fraction: float) -> tuple[list[int], list[int]]:
        return self.without(self.response[: round(fraction * len(self.response))])

    def without_last(self, fraction: float) -> tuple[list[int], list[int]]:
        return self.without(self.content[len(self.content) - round(fraction * len(self.content)) :])


@dataclass(frozen=True)
class PairRows:
    """One preference: chosen and rejected as rows, and the same with the cue at the end of the response."""

    rows: tuple[TokenRow, TokenRow]
    cued: tuple[list[int], list[int]]
    texts: dict[str, Text]


def read_pair(formatter: RewardFormatter, example: dict[str, Any], cue: str) -> PairRows:
    """The rows of a preference of any format that `RewardTrainer` takes.

    Raises:
        ValueError: a row that is not a preference.
    """
    preference = read_preference(example)
    kwargs = template_kwargs(example) if preference.is_conversation else {}
    responses = (preference.chosen, preference.rejected)
    chosen, rejected = (token_row(formatter, preference.prompt, response, kwargs) for response in responses)
    cued_chosen, cued_rejected = (
        formatter.encode(preference.prompt, with_cue(response, cue), **kwargs) for response in responses
    )
    return PairRows(
        rows=(chosen, rejected),
        cued=(cued_chosen, cued_rejected),
        texts={"prompt": preference.prompt, "chosen": preference.chosen, "rejected": preference.rejected},
    )


def shown_text(text: Text, limit: int) -> str | list[dict[str, str]]:
    """The end of a text, or of a conversation as turns of `role` and `content`, of at most so many characters; "…"
    where the beginning is missing."""
    if isinstance(text, str):
        return text if len(text) <= limit else f"…{text[-limit:]}"
    turns: list[dict[str, str]] = []
    left = limit
    for message in reversed(text):
        content = " ".join(message_texts(message))
        if len(content) > left:
            content = f"…{content[len(content) - left :]}"
        turns.insert(0, {"role": str(message["role"]), "content": content})
        left -= len(content)
        if left <= 0:
            break
    if len(turns) < len(text) and not turns[0]["content"].startswith("…"):
        turns[0]["content"] = f"…{turns[0]['content']}"
    return turns


def token_row(formatter: RewardFormatter, prompt: Text, response: Text, kwargs: dict[str, Any]) -> TokenRow:
    """The tokens of a prompt and a response.

    Args:
        kwargs: arguments of the chat template (see `formatting.template_kwargs`).
    """
    rendered = formatter.render(prompt, response, **kwargs)
    ids, offsets = formatter.encode_with_offsets(rendered, not isinstance(response, str))
    pieces = [1] if isinstance(prompt, str) else [len(message_texts(message)) for message in prompt]
    owners_of_contents = [number for number, count in enumerate(pieces) for _ in range(count)]  # a prompt's messages
    response_number = len(pieces)
    owner = np.full(len(rendered.text) + 1, -1)
    for span in rendered.spans:
        size = min(span.size, len(rendered.contents[span.content]) - span.offset)  # without an EOS of the user
        is_prompt = span.content < len(owners_of_contents)
        owner[span.start : span.start + size] = owners_of_contents[span.content] if is_prompt else response_number
    owners = [int(owner[start:end].max()) if end > start else -1 for start, end in offsets]
    parts = [[position for position, each in enumerate(owners) if each == part] for part in range(response_number + 1)]
    prompts = [position for position, each in enumerate(owners) if 0 <= each < response_number]
    return TokenRow(ids, prompts, parts[-1], parts[:-1])


def with_cue(response: Text, cue: str) -> Text:
    """The response with the cue at its end: of the text, or of the last message that has one."""
    if isinstance(response, str):
        return response.rstrip() + cue
    messages = [dict(message) for message in response]
    for message in reversed(messages):
        content = message.get("content")
        if isinstance(content, str):
            message["content"] = content.rstrip() + cue
            return messages
        texts = [part for part in content or [] if part.get("type") == "text"]
        if texts:
            message["content"] = [
                {**part, "text": part["text"].rstrip() + cue} if part is texts[-1] else part for part in content
            ]
            return messages
    raise ValueError(f"A response without text has no place for the cue: {response!r:.120}")
