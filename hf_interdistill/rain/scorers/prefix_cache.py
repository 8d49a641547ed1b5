"""What a judge has read already and where it lies: beginnings that further texts go on from.

`ReadTexts` keeps every text that was judged lately, token by token, so that a text reads only what no other of them
begins with; long answers are judged at the price of their ends. It needs a cache whose places can be shortened.
`PromptStems` keeps one whole beginning a prompt, for caches that hold each place on its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..kv_cache.copy_cache import CopyingCache
from ..kv_cache.tree_cache import Handle, TreeCache

_CALLS_KEPT = 8  # calls after which a beginning that none of them used is forgotten
_STEM_TOKENS_KEPT = 8192  # beyond the prefix, of whole stems; those used last stay


@dataclass(eq=False)
class Stem:
    """Token ids that texts begin with, and where they have been read."""

    ids: list[int]
    handle: Handle | None = None

    def begins(self, context: Sequence[int]) -> bool:
        """Whether it has been read, and `context` begins with it and goes on."""
        length = len(self.ids)
        return self.handle is not None and len(context) > length and context[:length] == self.ids


@dataclass(eq=False)
class _Token:
    """A token that was read: its slot, the last call that used it, and what came after it."""

    slot: int
    used: int
    next: dict[int, _Token] = field(default_factory=dict)


class ReadTexts:
    """All texts of the last calls, as a tree of tokens (a radix cache, as inference servers have for prompts).

    Args:
        cache: where keys and values lie. prefix: what all texts begin with.
    """

    def __init__(self, cache: TreeCache, prefix: Stem):
        self.cache = cache
        self.prefix = prefix
        self._next: dict[int, _Token] = {}
        self._slots: set[int] = set()
        self._call = 0

    def openings(self, prompts: Sequence[Any], build: Callable[[Any], list[int]]) -> list[tuple[Stem, int]]:
        """Beginnings to read besides the texts: none, for a place in the middle of a text is as good as its end."""
        return []

    def bases(self, sequences: Sequence[list[int]], prompts: Sequence[Any]) -> list[Stem | None]:
        """The longest beginning of each sequence that has been read; sequences with the same one get one object."""
        found: dict[tuple[int, int], Stem] = {}
        return [self._base(ids, found) if self._has_prefix(ids) else None for ids in sequences]

    def _has_prefix(self, ids: list[int]) -> bool:
        return not self.prefix.ids or self.prefix.begins(ids)

    def _base(self, ids: list[int], found: dict[tuple[int, int], Stem]) -> Stem | None:
        start, after, slots = len(self.prefix.ids), self._next, [-1]
        for token in ids[start:-1]:  # the last one must be read for its logits
            if token not in after:
                break
            after[token].used = self._call
            slots.append(after[token].slot)
            after = after[token].next
        length = start + len(slots) - 1
        if not length:
            return None
        key = length, slots[-1]
        if key not in found:
            own = np.array(slots[1:], dtype=np.int64)
            place = np.concatenate([self.prefix.handle.slots, own]) if start else own
            found[key] = Stem(ids[:length], Handle(0, length, place))
        return found[key]

    def keep(self, texts: Sequence[Sequence[tuple[list[int], Handle]]], opened: Sequence[tuple[Stem, Handle]]) -> None:
        """Remember what the orders of each text begin with alike, and free the rest.

        Args:
            texts: for each text its orders: token ids, and the place after them. opened: nothing.
        """
        start = len(self.prefix.ids)
        for orders in texts:
            ids, handle = orders[0]
            if not self._has_prefix(ids):
                continue
            stop, after = common_length([each for each, _ in orders], start), self._next
            for token, slot in zip(ids[start:stop], handle.slots[start:stop].tolist(), strict=True):
                if token not in after:
                    after[token] = _Token(slot, self._call)
                    self._slots.add(slot)
                after = after[token].next
        self._free()

    def end_call(self) -> None:
        """Forget what has not been used for a while."""
        stack = [self._next]
        while stack:
            after = stack.pop()
            for token, read in list(after.items()):
                if read.used < self._call - _CALLS_KEPT:
                    self._slots.difference_update(each.slot for each in _subtree(after.pop(token)))
                else:
                    stack.append(read.next)
        self._call += 1
        self._free()

    def _free(self) -> None:
        prefix = self.prefix.handle
        self.cache.keep_slots(0, self._slots.union(prefix.slots.tolist() if prefix else ()))


def _subtree(token: _Token) -> Iterator[_Token]:
    stack = [token]
    while stack:
        token = stack.pop()
        yield token
        stack.extend(token.next.values())


class PromptStems:
    """The beginnings of the prompts in flight, each read whole.

    Args:
        cache: where keys and values lie. prefix: what all texts begin with.
    """

    def __init__(self, cache: CopyingCache, prefix: Stem):
        self.cache = cache
        self.prefix = prefix
        self.stems: OrderedDict[str, Stem] = OrderedDict()

    def openings(self, prompts: Sequence[Any], build: Callable[[Any], list[int]]) -> list[tuple[Stem, int]]:
        """Stems that have not been read, each with the place of the first text that needs it.

        Args:
            prompts: of the texts. build: the token ids that all texts of a prompt begin with.
        """
        opened: dict[Stem, int] = {}
        for place, prompt in enumerate(prompts):
            key = repr(prompt)
            if key not in self.stems:
                self.stems[key] = Stem(build(prompt))
            self.stems.move_to_end(key)
            if self.stems[key].handle is None and self._goes_on(self.stems[key]):
                opened.setdefault(self.stems[key], place)
        return list(opened.items())

    def _goes_on(self, stem: Stem) -> bool:
        return self.prefix.begins(stem.ids) if self.prefix.ids else bool(stem.ids)

    def bases(self, sequences: Sequence[list[int]], prompts: Sequence[Any]) -> list[Stem | None]:
        """What has been read already of each sequence: its prompt's stem, the prefix, or nothing."""
        return [
            next((base for base in (self.stems.get(repr(prompt)), self.prefix) if base and base.begins(ids)), None)
            for ids, prompt in zip(sequences, prompts, strict=True)
        ]

    def keep(self, texts: Sequence, opened: Sequence[tuple[Stem, Handle]]) -> None:
        """Remember the stems that were read; texts at hand may still point to others."""
        own = len(self.prefix.ids)
        while sum(len(stem.ids) - own for stem in self.stems.values()) > _STEM_TOKENS_KEPT:
            self.stems.popitem(last=False)[1].handle = None
        kept = {id(stem) for stem in self.stems.values()}
        for stem, handle in opened:
            stem.handle = handle if id(stem) in kept else None

    def end_call(self) -> None:
        """Nothing to do."""


def common_length(sequences: Sequence[Sequence[int]], start: int = 0) -> int:
    """Length of the beginning that all sequences share; at least `start`, which they share already."""
    length = start
    shortest = min(map(len, sequences))
    while length < shortest and len({sequence[length] for sequence in sequences}) == 1:
        length += 1
    return length
