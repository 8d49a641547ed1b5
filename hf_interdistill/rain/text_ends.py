"""Token ids of texts that begin with the same long text, at the price of their ends."""

from __future__ import annotations

from collections.abc import Sequence

from .beginnings import common_length

_OVERLAP = 240  # characters of the common text that are tokenized again with each end
_LEAST_SAVED = 4 * _OVERLAP  # a shorter common text is not worth the trouble
_SHIFTING = 8  # tokens at the end of the common text that may depend on what follows
_TRIALS = ("a", "7 z", "\n")  # ends with nothing in common


class TextEnds:
    """Tokenizes `beginning + end` for many ends.

    How a text is split depends on a few characters to either side, so the last stretch of the beginning, tokenized
    with the end, comes out as it does in the whole text, but perhaps for its first tokens. Trials say where the two
    agree. Each text is checked against them, and one that does not agree is tokenized whole; so is every text if the
    trials do not agree, or the beginning is short.

    Args:
        tokenizer: any. beginning: what all texts begin with.
    """

    def __init__(self, tokenizer, beginning: str):
        self.tokenizer = tokenizer
        self.beginning = beginning
        self._start = len(beginning) - _OVERLAP
        self._head: list[int] = []  # token ids of the beginning up to where the two agree
        self._lead: list[int] = []  # first token ids of every stretch; they are checked
        self._skipped = 0  # of these that the head stands for
        if len(beginning) >= _LEAST_SAVED:
            self._align()

    def _align(self) -> None:
        whole = self._ids([self.beginning + end for end in _TRIALS])
        parts = self._ids([self.beginning[self._start :] + end for end in _TRIALS], add_special_tokens=False)
        alike = common_length([whole[0][::-1], parts[0][::-1]])
        head, skipped = whole[0][: len(whole[0]) - alike], len(parts[0]) - alike
        lead = common_length(parts) - _SHIFTING
        is_same = all(ids == head + part[skipped:] for ids, part in zip(whole, parts, strict=True))
        if is_same and skipped <= lead - _SHIFTING:
            self._head, self._lead, self._skipped = head, parts[0][:lead], skipped

    @property
    def is_short(self) -> bool:
        """Whether only the ends are tokenized."""
        return bool(self._lead)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, which begins with the beginning."""
        if not self._lead:
            return self._ids(texts)
        parts = self._ids([text[self._start :] for text in texts], add_special_tokens=False)
        return [
            self._head + part[self._skipped :] if part[: len(self._lead)] == self._lead else self._ids([text])[0]
            for text, part in zip(texts, parts, strict=True)
        ]

    def _ids(self, texts: Sequence[str], **settings) -> list[list[int]]:
        return self.tokenizer(list(texts), verbose=False, **settings)["input_ids"]
