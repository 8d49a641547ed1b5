"""Units: spans of text that no token of either tokenizer crosses, so that maps of two models can be compared.

Units are the words of the contents (runs of word characters, runs of punctuation, single characters where a script
has no spaces). Words that share a token of either tokenizer are joined to one unit. So every token with content lies
in exactly one unit, whatever the two tokenizers are. Source: ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Scripts without spaces between words: a word would be a whole sentence.
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029"  # CJK radicals and numerals
    "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s{_UNSPACED}]+")

NO_UNIT = -1


def word_spans(text: str) -> np.ndarray:
    """Character spans of the words of a text, shape `(words, 2)`, in order, without overlaps and white space."""
    return np.array([match.span() for match in _WORD.finditer(text)], dtype=np.int64).reshape(-1, 2)


def tokens_to_words(offsets: Sequence[tuple[int, int]], words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last word that each token overlaps.

    Args:
        offsets: `(start, end)` characters of each token, `tokens` of them, in the coordinates of `words`.
        words: `(words, 2)`, sorted and not overlapping.

    Returns:
        two arrays of shape `(tokens,)`; both are `NO_UNIT` for a token that overlaps no word.
    """
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    first = np.searchsorted(words[:, 1], spans[:, 0], side="right")
    last = np.searchsorted(words[:, 0], spans[:, 1], side="left") - 1
    is_outside = (first > last) | (spans[:, 0] >= spans[:, 1])
    return np.where(is_outside, NO_UNIT, first), np.where(is_outside, NO_UNIT, last)


class PlacedContent(NamedTuple):
    """A run of characters of a content in a tokenized text.

    Args:
        segment, content: number of its segment, and its number in the segment.
        offset: where the run begins in the content.
        start: where it begins in the tokenized text.
        size: characters of it.
    """

    segment: int
    content: int
    offset: int
    start: int
    size: int


class UnitTable:
    """The words of several segments (prompt, chosen, rejected), joined to units where a token covers several.

    Args:
        segments: the contents of each segment, in reading order.

    Use: `add` once for each tokenization of some of the contents, then `token_units` for each. `sizes` is the number
    of units in each segment. Units are numbered across all segments in reading order.
    """

    def __init__(self, segments: Sequence[Sequence[str]]):
        self._segments = segments
        self._words = [[word_spans(content) for content in contents] for contents in segments]
        counts = [[len(words) for words in contents] for contents in self._words]
        starts = np.cumsum([0] + [count for contents in counts for count in contents])
        flat = iter(starts)
        self._first_word = [[int(next(flat)) for _ in contents] for contents in self._words]
        self._segment_of_word = np.repeat(np.arange(len(counts)), [sum(contents) for contents in counts])
        # is_joined[w]: word w + 1 is in the unit of word w
        self._is_joined = np.zeros(int(starts[-1]), dtype=bool)

    def add(self, offsets, places: Sequence[PlacedContent]) -> np.ndarray:
        """Register one tokenization.

        Args:
            offsets: `(start, end)` of each token in the tokenized text.
            places: what the tokenized text holds of the contents, in its order, without overlaps.

        Returns:
            the first word of each token, `(tokens,)`: the argument of `token_units`, once all tokenizations are added.
        """
        spans, numbers = [np.zeros((0, 2), dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for segment, content, offset, start, size in places:
            words, end = self._words[segment][content], offset + size
            begin = int(np.searchsorted(words[:, 1], offset, side="right"))
            stop = int(np.searchsorted(words[:, 0], end, side="left"))
            spans.append(words[begin:stop].clip(offset, end) - offset + start)
            numbers.append(np.arange(begin, stop) + self._first_word[segment][content])
        words, number = np.concatenate(spans), np.concatenate(numbers)
        first, last = tokens_to_words(offsets, words)
        is_inside = first != NO_UNIT
        if not len(number):
            return np.full(len(first), NO_UNIT)
        first, last = np.where(is_inside, number[first], NO_UNIT), np.where(is_inside, number[last], NO_UNIT)
        for token in np.nonzero(first != last)[0]:
            covered = np.arange(first[token], last[token])
            is_same = self._segment_of_word[covered] == self._segment_of_word[covered + 1]
            self._is_joined[covered[is_same]] = True
        return first

    def token_units(self, first_words: np.ndarray) -> np.ndarray:
        """Unit of each token, `NO_UNIT` for tokens without content; shape `(tokens,)`."""
        units = np.cumsum(~np.concatenate([[False], self._is_joined[:-1]])) - 1 if len(self._is_joined) else None
        if units is None:
            return np.full(len(first_words), NO_UNIT)
        return np.where(first_words == NO_UNIT, NO_UNIT, units[first_words])

    def texts(self) -> list[str]:
        """The text of each unit, its words joined."""
        words = [
            content[start:end]
            for contents, spans in zip(self._segments, self._words, strict=True)
            for content, starts_and_ends in zip(contents, spans, strict=True)
            for start, end in starts_and_ends
        ]
        units: list[str] = []
        for number, word in enumerate(words):
            if number and self._is_joined[number - 1]:
                units[-1] += word
            else:
                units.append(word)
        return units

    @property
    def sizes(self) -> list[int]:
        """Units in each segment."""
        if not len(self._is_joined):
            return [0] * len(self._words)
        starts_unit = ~np.concatenate([[False], self._is_joined[:-1]])
        return np.bincount(self._segment_of_word[starts_unit], minlength=len(self._words)).tolist()
