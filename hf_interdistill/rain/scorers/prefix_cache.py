"""Cached prefixes of the texts that a judge scores: the work for one text is reused for the next.

`RadixPrefixCache` keeps the texts of the last calls token by token, as inference servers do for prompts: only the part
of a text that no cached text starts with is computed, so a long answer costs only its end. It needs a cache whose
texts can be shortened. `PromptPrefixCache` keeps one whole prefix for each prompt, for caches that hold each text on
its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..kv_cache.copy_cache import CopyCache
from ..kv_cache.forward import CacheHandle
from ..kv_cache.tree_cache import TreeCache

_CALLS_KEPT = 8  # calls without use after which a token is evicted
_PROMPT_TOKENS_KEPT = 8192  # beyond the shared prefix; prompts used last stay


@dataclass(eq=False)
class CachedPrefix:
    """Token ids that texts start with, and their keys and values once they are computed."""

    ids: list[int]
    handle: CacheHandle | None = None

    def is_prefix_of(self, ids: Sequence[int]) -> bool:
        """Whether it is computed, and `ids` start with it and are longer."""
        length = len(self.ids)
        return self.handle is not None and len(ids) > length and ids[:length] == self.ids


@dataclass(eq=False)
class _Node:
    """A cached token: its slot, the last call that used it, and the tokens that follow it."""

    slot: int
    last_used: int
    children: dict[int, _Node] = field(default_factory=dict)


class RadixPrefixCache:
    """The texts of the last calls, as a tree of tokens.

    Args:
        cache: where keys and values are kept. prefix: what all texts start with.
    """

    def __init__(self, cache: TreeCache, prefix: CachedPrefix):
        self.cache = cache
        self.prefix = prefix
        self._children: dict[int, _Node] = {}
        self._slots: set[int] = set()
        self._call = 0

    def missing(self, prompts: Sequence[Any], build: Callable[[Any], list[int]]) -> list[tuple[CachedPrefix, int]]:
        """Prefixes to compute beside the texts: none, since a text can be continued at any of its tokens."""
        return []

    def match(self, sequences: Sequence[list[int]], prompts: Sequence[Any]) -> list[CachedPrefix | None]:
        """The longest cached prefix of each sequence; sequences with the same one get one object."""
        found: dict[tuple[int, int], CachedPrefix] = {}
        return [self._match(ids, found) if self._has_prefix(ids) else None for ids in sequences]

    def _has_prefix(self, ids: list[int]) -> bool:
        return not self.prefix.ids or self.prefix.is_prefix_of(ids)

    def _match(self, ids: list[int], found: dict[tuple[int, int], CachedPrefix]) -> CachedPrefix | None:
        start, children, slots = len(self.prefix.ids), self._children, [-1]
        for token in ids[start:-1]:  # the last one must be computed for its logits
            if token not in children:
                break
            children[token].last_used = self._call
            slots.append(children[token].slot)
            children = children[token].children
        length = start + len(slots) - 1
        if not length:
            return None
        key = length, slots[-1]
        if key not in found:
            own = np.array(slots[1:], dtype=np.int64)
            whole = own if self.prefix.handle is None else np.concatenate([self.prefix.handle.slots, own])
            found[key] = CachedPrefix(ids[:length], CacheHandle(0, length, whole))
        return found[key]

    def insert(
        self,
        texts: Sequence[Sequence[tuple[list[int], CacheHandle]]],
        computed: Sequence[tuple[CachedPrefix, CacheHandle]],
    ) -> None:
        """Keep what the orders of each text have in common, and free the rest.

        Args:
            texts: for each text its orders: token ids, and their handle. computed: none.
        """
        start = len(self.prefix.ids)
        for orders in texts:
            ids, handle = orders[0]
            if not self._has_prefix(ids):
                continue
            stop, children = common_prefix_length([each for each, _ in orders], start), self._children
            for token, slot in zip(ids[start:stop], handle.slots[start:stop].tolist(), strict=True):
                if token not in children:
                    children[token] = _Node(slot, self._call)
                    self._slots.add(slot)
                children = children[token].children
        self._retain()

    def evict(self) -> None:
        """End a call: evict what was not used for a while."""
        stack = [self._children]
        while stack:
            children = stack.pop()
            for token, node in list(children.items()):
                if node.last_used < self._call - _CALLS_KEPT:
                    self._slots.difference_update(each.slot for each in _subtree(children.pop(token)))
                else:
                    stack.append(node.children)
        self._call += 1
        self._retain()

    def _retain(self) -> None:
        prefix = self.prefix.handle
        self.cache.slots.retain(0, self._slots.union(prefix.slots.tolist() if prefix else ()))


def _subtree(node: _Node) -> Iterator[_Node]:
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.children.values())


class PromptPrefixCache:
    """The prefixes of the active prompts, each kept whole.

    Args:
        cache: where keys and values are kept. prefix: what all texts start with.
    """

    def __init__(self, cache: CopyCache, prefix: CachedPrefix):
        self.cache = cache
        self.prefix = prefix
        self._by_prompt: OrderedDict[str, CachedPrefix] = OrderedDict()

    def missing(self, prompts: Sequence[Any], build: Callable[[Any], list[int]]) -> list[tuple[CachedPrefix, int]]:
        """Prefixes that are not computed yet, each with the number of the first text that needs it.

        Args:
            prompts: of the texts. build: the token ids that all texts of a prompt start with.
        """
        missing: dict[CachedPrefix, int] = {}
        for number, prompt in enumerate(prompts):
            key = repr(prompt)
            if key not in self._by_prompt:
                self._by_prompt[key] = CachedPrefix(build(prompt))
            self._by_prompt.move_to_end(key)
            own = self._by_prompt[key]
            if own.handle is None and (self.prefix.is_prefix_of(own.ids) if self.prefix.ids else own.ids):
                missing.setdefault(own, number)
        return list(missing.items())

    def match(self, sequences: Sequence[list[int]], prompts: Sequence[Any]) -> list[CachedPrefix | None]:
        """The longest cached prefix of each sequence: its prompt's, the shared one, or none."""
        matches = []
        for ids, prompt in zip(sequences, prompts, strict=True):
            candidates = (self._by_prompt.get(repr(prompt)), self.prefix)
            matches.append(next((each for each in candidates if each and each.is_prefix_of(ids)), None))
        return matches

    def insert(self, texts: Sequence, computed: Sequence[tuple[CachedPrefix, CacheHandle]]) -> None:
        """Keep the prefixes that were computed; those evicted meanwhile are not kept."""
        own = len(self.prefix.ids)
        while sum(len(each.ids) - own for each in self._by_prompt.values()) > _PROMPT_TOKENS_KEPT:
            self._by_prompt.popitem(last=False)[1].handle = None
        kept = set(self._by_prompt.values())
        for each, handle in computed:
            each.handle = handle if each in kept else None

    def evict(self) -> None:
        """End a call: nothing to do."""


def common_prefix_length(sequences: Sequence[Sequence[int]], start: int = 0) -> int:
    """Length of the prefix that all sequences share; at least `start`, the number that they are known to share."""
    length = start
    shortest = min(map(len, sequences))
    while length < shortest and len({sequence[length] for sequence in sequences}) == 1:
        length += 1
    return length
