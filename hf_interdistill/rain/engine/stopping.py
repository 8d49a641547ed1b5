"""Where a generated text ends, where a rollout stops, and what the tokens say."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..config import RainConfig

_TAIL = 16  # tokens decoded again to find the marker of a new turn
_ANCHOR = 8  # prompt tokens decoded with a completion, so that its leading space is right


@dataclass(frozen=True)
class StopConditions:
    """What ends a generation.

    Args:
        limit: new tokens at most.
        eos_token_ids: tokens that end it.
        criteria: further stopping criteria, called with ids `(1, tokens)` of prompt and text without padding.
        processors: logits processors, called with ids `(rows, tokens)` and scores `(rows, vocabulary)`.
        limit_name: what the limit is, for `finish_reason`.
        deadline: `time.time()` from which on the text gets no more tokens than its next commit; `None` for none.
    """

    limit: int
    eos_token_ids: frozenset[int] = frozenset()
    criteria: tuple = ()
    processors: tuple = ()
    limit_name: str = "length"
    deadline: float | None = None


@dataclass
class StopChecker:
    """Checks the texts of one prompt for their end, and decodes them.

    Args:
        prompt_ids: the prompt, without padding.
        tokenizer: the model's.
        config: for rollout stops and turn markers.
        stop: what ends the generation.
    """

    prompt_ids: tuple[int, ...]
    tokenizer: Any
    config: RainConfig
    stop: StopConditions
    _token_texts: dict[int, str] = field(default_factory=dict)
    _may_end_marker: dict[int, bool] = field(default_factory=dict)  # by token

    def __post_init__(self):
        ends = [marker[-1] for marker in self.config.turn_markers]
        # Such a character is in a text only if it is in one of its tokens; others may be spread over tokens.
        is_in_one_token = all(end.isascii() and end.isprintable() and end != " " for end in ends)
        self._last_characters = set(ends) if is_in_one_token else None
        self._anchor = list(self.prompt_ids[-_ANCHOR:])

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def remaining(self, tokens: Sequence[int]) -> int:
        """New tokens that may follow."""
        return self.stop.limit - len(tokens)

    def is_late(self) -> bool:
        """Whether the time for the text is over."""
        return self.stop.deadline is not None and time.time() > self.stop.deadline

    def finish_reason(self, tokens: Sequence[int]) -> str | None:
        """Why the text ends after `tokens` (see `RainRecord`), or `None` if it continues."""
        if not tokens:
            return None
        if tokens[-1] in self.stop.eos_token_ids:
            return "eos"
        if self.config.turn_markers and self._may_hold_marker(tokens[-_TAIL:]):
            tail = self.fragment(tokens[:-_TAIL], tokens[-_TAIL:])
            if any(marker in tail for marker in self.config.turn_markers):
                return "turn"
        if self.is_late():
            return "time"
        if self.stop.criteria:
            ids = torch.tensor([[*self.prompt_ids, *tokens]])
            if any(bool(torch.as_tensor(criterion(ids, None)).all()) for criterion in self.stop.criteria):
                return "stop"
        return self.stop.limit_name if len(tokens) >= self.stop.limit else None

    def stops_rollout(self, tokens: Sequence[int]) -> bool:
        """Whether a rollout has nothing to add, since the text ends with a stop character."""
        if not tokens or not self.config.rollout_stops:
            return False
        last = self._token_text(tokens[-1])[-1:]
        return bool(last) and last in self.config.rollout_stops

    def _token_text(self, token: int) -> str:
        if token not in self._token_texts:
            self._token_texts[token] = self._decode([token])
        return self._token_texts[token]

    def _may_hold_marker(self, tokens: Sequence[int]) -> bool:
        """Whether the marker of a new turn may end within these tokens; that is cheaper to know than to decode."""
        if self._last_characters is None:
            return True
        for token in tokens:
            if token not in self._may_end_marker:
                self._may_end_marker[token] = not self._last_characters.isdisjoint(self._token_text(token))
            if self._may_end_marker[token]:
                return True
        return False

    def fragment(self, before: Sequence[int], tokens: Sequence[int]) -> str:
        """The text of `tokens` after the generated tokens `before`."""
        anchor = [*self._anchor, *before][-_ANCHOR:]
        start = self._decode(anchor)
        text = self._decode([*anchor, *tokens])
        while start.endswith("\ufffd") and not text.startswith(start):  # half a character, which `tokens` complete
            start = start[:-1]
        return text[len(start) :] if text.startswith(start) else self._decode(list(tokens))

    def completion(self, tokens: Sequence[int]) -> str:
        """The text of all generated tokens, up to the marker of a new turn."""
        text = self.fragment((), tokens)
        found = [text.find(marker) for marker in self.config.turn_markers]
        return text[: min((place for place in found if place >= 0), default=len(text))]
