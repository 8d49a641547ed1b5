"""Which slots of a pool hold which tokens: numbers only.

Rows (prompts) take slots and free them. A text that begins as another row's does shares the slots of the beginning; a
slot is free when no row needs it any more.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_LEAST = 64  # slots
_LEAST_SHARED = 16  # tokens; a shorter beginning (a first token, a word) is not worth reading prompts in one pass


@dataclass
class _Opening:
    """The text that a row began with, and where it lies."""

    tokens: np.ndarray
    slots: np.ndarray


class SlotPool:
    """A pool of slots.

    Args:
        rows: that share it. capacity: slots at first; the pool grows by doubling.

    Attributes:
        capacity: slots of the pool; slot 0 takes the padding of shorter lines, and no token.
        held: slots that hold tokens; one that several rows share counts once.
    """

    def __init__(self, rows: int, capacity: int = _LEAST):
        self.capacity = capacity
        self._next = 1
        self._freed: list[int] = []
        self._in_use: list[set[int]] = [set() for _ in range(rows)]
        self._users: dict[int, int] = {}  # rows that a slot serves
        self._openings: dict[int, _Opening] = {}

    @property
    def held(self) -> int:
        return len(self._users)

    def take(self, row: int, count: int) -> np.ndarray:
        """Slots for so many tokens, `(count,)`."""
        slots = [heapq.heappop(self._freed) for _ in range(min(count, len(self._freed)))]
        slots += range(self._next, self._next + count - len(slots))
        self._next = max(self._next, slots[-1] + 1)
        while self.capacity < self._next:
            self.capacity *= 2
        self._hold(row, slots)
        return np.array(slots, dtype=np.int64)

    def open(self, row: int, tokens: Sequence[int]) -> tuple[np.ndarray, int, int | None]:
        """Slots for a text that goes on from nothing.

        Returns:
            The slots of all its tokens; how many tokens at its beginning lie in slots of another text already (never
            the last token, for it must be read for its logits); and that text's row, or `None`.
        """
        ids = np.asarray(tokens, dtype=np.int64)
        owner, shared = None, 0
        for other, opening in self._openings.items():
            common = common_beginning(ids[:-1], opening.tokens)
            if common >= max(_LEAST_SHARED, shared + 1):
                owner, shared = other, common
        before = np.zeros(0, dtype=np.int64) if owner is None else self._openings[owner].slots[:shared]
        self._hold(row, before.tolist())
        slots = np.concatenate([before, self.take(row, len(ids) - shared)])
        self._openings[row] = _Opening(ids, slots)
        return slots, shared, owner

    def _hold(self, row: int, slots: Iterable[int]) -> None:
        for slot in set(slots) - self._in_use[row]:
            self._in_use[row].add(slot)
            self._users[slot] = self._users.get(slot, 0) + 1

    def keep_only(self, row: int, slots: set[int]) -> None:
        """Free all slots of a row but these."""
        self.free(row, self._in_use[row] - slots)

    def free(self, row: int, slots: Iterable[int]) -> None:
        """A row needs these slots no more."""
        gone = self._in_use[row].intersection(slots)  # one that is free already may be another prompt's next
        self._in_use[row] -= gone
        if row in self._openings and not gone.isdisjoint(self._openings[row].slots.tolist()):
            del self._openings[row]
        for slot in gone:
            self._users[slot] -= 1
            if not self._users[slot]:
                del self._users[slot]
                heapq.heappush(self._freed, slot)


def common_beginning(first: np.ndarray, second: np.ndarray) -> int:
    """Length of the beginning that is the same."""
    length = min(len(first), len(second))
    differs = np.flatnonzero(first[:length] != second[:length])
    return int(differs[0]) if len(differs) else length
