"""Which slots of a pool hold which tokens: numbers only.

Rows (prompts) allocate slots and free them. A text that starts like another row's text shares the slots of the common
prefix. A slot is free when no row uses it any more.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_INITIAL_CAPACITY = 64  # slots
_MIN_SHARED = 16  # tokens; to share a shorter prefix (a first token, a word) would only tie prompts to one pass


@dataclass
class _Sequence:
    """The text that a row started with, and its slots."""

    tokens: np.ndarray
    slots: np.ndarray


@dataclass(frozen=True)
class Allocation:
    """Slots of a new text.

    Args:
        slots: of all its tokens, `(tokens,)`.
        num_shared: tokens at its start that lie in another text's slots; never the last token, whose logits are
            wanted.
        owner: the row of that text, or `None`.
    """

    slots: np.ndarray
    num_shared: int
    owner: int | None


class SlotAllocator:
    """Allocates the slots of a pool.

    Args:
        rows: that share it. capacity: slots at first; the pool grows by doubling.

    Attributes:
        capacity: slots of the pool; slot 0 is for padding and holds no token.
        num_held: slots that hold tokens; one that several rows share counts once.
    """

    def __init__(self, rows: int, capacity: int = _INITIAL_CAPACITY):
        self.capacity = capacity
        self._next = 1
        self._free: list[int] = []
        self._in_use: list[set[int]] = [set() for _ in range(rows)]
        self._ref_counts: dict[int, int] = {}  # rows that use a slot
        self._sequences: dict[int, _Sequence] = {}

    @property
    def num_held(self) -> int:
        return len(self._ref_counts)

    def allocate(self, row: int, count: int) -> np.ndarray:
        """Slots for so many tokens, `(count,)`."""
        slots = [heapq.heappop(self._free) for _ in range(min(count, len(self._free)))]
        slots += range(self._next, self._next + count - len(slots))
        self._next = max(self._next, slots[-1] + 1)
        while self.capacity < self._next:
            self.capacity *= 2
        self._acquire(row, slots)
        return np.array(slots, dtype=np.int64)

    def allocate_sequence(self, row: int, tokens: Sequence[int]) -> Allocation:
        """Slots for a new text of a row; its prefix may share those of another row's text."""
        ids = np.asarray(tokens, dtype=np.int64)
        owner, shared = None, 0
        for other, sequence in self._sequences.items():
            common = common_prefix_length(ids[:-1], sequence.tokens)
            if common >= max(_MIN_SHARED, shared + 1):
                owner, shared = other, common
        before = np.zeros(0, dtype=np.int64) if owner is None else self._sequences[owner].slots[:shared]
        self._acquire(row, before.tolist())
        slots = np.concatenate([before, self.allocate(row, len(ids) - shared)])
        self._sequences[row] = _Sequence(ids, slots)
        return Allocation(slots, shared, owner)

    def _acquire(self, row: int, slots: Iterable[int]) -> None:
        for slot in set(slots) - self._in_use[row]:
            self._in_use[row].add(slot)
            self._ref_counts[slot] = self._ref_counts.get(slot, 0) + 1

    def retain(self, row: int, slots: set[int]) -> None:
        """Free all slots of a row except these."""
        self.free(row, self._in_use[row] - slots)

    def free(self, row: int, slots: Iterable[int]) -> None:
        """A row no longer uses these slots."""
        freed = self._in_use[row].intersection(slots)  # a slot that is free already may be another prompt's next
        self._in_use[row] -= freed
        if row in self._sequences and not freed.isdisjoint(self._sequences[row].slots.tolist()):
            del self._sequences[row]
        for slot in freed:
            self._ref_counts[slot] -= 1
            if not self._ref_counts[slot]:
                del self._ref_counts[slot]
                heapq.heappush(self._free, slot)


def common_prefix_length(first: np.ndarray, second: np.ndarray) -> int:
    """Length of the prefix that two arrays share."""
    length = min(len(first), len(second))
    differs = np.flatnonzero(first[:length] != second[:length])
    return int(differs[0]) if len(differs) else length
