"""Where a generated text ends, where a rollout stops, and what the tokens say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..config import RainConfig

_TAIL = 16  # tokens read back to find a new turn's marker
_ANCHOR = 8  # prompt tokens decoded with a completion, so that its leading space is right


@dataclass(frozen=True)
class StopConditions:
    """What ends a generation.

    Args:
        limit: new tokens at most.
        eos_token_ids: tokens that end it.
        criteria: further stopping criteria, called with ids `(1, tokens)` of prompt and text.
        processors: logits processors, called with ids `(rows, tokens)` and scores `(rows, vocabulary)`.
        limit_name: what the limit is, for `finish_reason`.
    """

    limit: int
    eos_token_ids: frozenset[int] = frozenset()
    criteria: tuple = ()
    processors: tuple = ()
    limit_name: str = "length"


@dataclass
class StopChecker:
    """The rules of one prompt.

    Args:
        prompt_ids: the prompt, without padding.
        tokenizer: the model's.
        config: for rollout stops and turn markers.
        stop: what ends the generation.
    """

    prompt_ids: tuple[int, ...]
    tokenizer: object
    config: RainConfig
    stop: StopConditions
    _texts: dict[int, str] = field(default_factory=dict)  # of single tokens
    _ends_marker: dict[int, bool] = field(default_factory=dict)  # whether a marker may end with a token

    def __post_init__(self):
        ends = [marker[-1] for marker in self.config.turn_markers]
        # Such a character is in a text only if it is in one of its tokens; others may be spread over tokens.
        self._marker_ends = (
            set(ends) if all(end.isascii() and end.isprintable() and end != " " for end in ends) else None
        )
        self._anchor = list(self.prompt_ids[-_ANCHOR:])
        self._anchor_text = self._decode(self._anchor)

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def remaining(self, tokens: Sequence[int]) -> int:
        """New tokens that may follow."""
        return self.stop.limit - len(tokens)

    def finish_reason(self, tokens: Sequence[int]) -> str | None:
        """Why the text ends after `tokens` (`eos`, `turn`, `stop`, `length`, `context`), or `None` if it goes on."""
        if not tokens:
            return None
        if tokens[-1] in self.stop.eos_token_ids:
            return "eos"
        if self.config.turn_markers and self._may_show_a_marker(tokens[-_TAIL:]):
            tail = self.fragment(tokens[:-_TAIL], tokens[-_TAIL:])
            if any(marker in tail for marker in self.config.turn_markers):
                return "turn"
        if self.stop.criteria:
            ids = torch.tensor([[*self.prompt_ids, *tokens]])
            if any(bool(torch.as_tensor(criterion(ids, None)).all()) for criterion in self.stop.criteria):
                return "stop"
        return self.stop.limit_name if len(tokens) >= self.stop.limit else None

    def stops_rollout(self, tokens: Sequence[int]) -> bool:
        """Whether a rollout has nothing to add, for the text ends with a stop character."""
        if not tokens or not self.config.rollout_stops:
            return False
        last = self._text(tokens[-1])[-1:]
        return bool(last) and last in self.config.rollout_stops

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._decode([token])
        return self._texts[token]

    def _may_show_a_marker(self, tokens: Sequence[int]) -> bool:
        """Whether a new turn's marker may end within these tokens; it is cheaper to ask than to read them."""
        if self._marker_ends is None:
            return True
        for token in tokens:
            if token not in self._ends_marker:
                self._ends_marker[token] = not self._marker_ends.isdisjoint(self._text(token))
            if self._ends_marker[token]:
                return True
        return False

    def fragment(self, before: Sequence[int], tokens: Sequence[int]) -> str:
        """The text of `tokens` after the generated tokens `before`."""
        anchor = [*self._anchor, *before][-_ANCHOR:]
        start = self._decode(anchor)
        text = self._decode([*anchor, *tokens])
        return text[len(start) :] if text.startswith(start) else self._decode(list(tokens))

    def completion(self, tokens: Sequence[int]) -> str:
        """The text of all generated tokens, up to a new turn's marker."""
        text = self.fragment((), tokens)
        places = [text.find(marker) for marker in self.config.turn_markers]
        return text[: min((place for place in places if place >= 0), default=len(text))]
