"""From branches to the batches of forward passes: which branches run in one pass, and its tensors, in NumPy.

Branches of all prompts are packed side by side into few batch rows, under a tree mask: a token attends to its
ancestors and to itself.

Source: ours; the packing of branches under a mask is that of tree attention in speculative decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .row_packing import pack_rows

_ALWAYS_TOGETHER = 32  # tokens; groups up to here never get a pass of their own
_MUCH_LONGER = 4  # a group longer than so many times all shorter ones together gets one


@dataclass(eq=False)
class Branch:
    """What a pass computes for one forward input.

    Args:
        row: the prompt that it belongs to. tokens: token ids to compute.
        slots: of the whole text up to the last of these tokens, `(length,)`.
        depends_on: the branch of the same call that the tokens follow, if it is not cached yet.
    """

    row: int
    tokens: Sequence[int]
    slots: np.ndarray
    depends_on: Branch | None = None


@dataclass(frozen=True)
class Batch:
    """The tensors of a forward pass over `rows` batch rows of `width` tokens that see `gathered` slots.

    Args:
        input_ids, position_ids, slots: `(rows, width)`. gather_slots: `(rows, gathered)`.
        mask: `(rows, 1, width, gathered)` bool, true where a token attends to a slot.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    slots: np.ndarray
    gather_slots: np.ndarray
    mask: np.ndarray


def dependency_groups(branches: Sequence[Branch]) -> list[list[Branch]]:
    """Branches that must run in one pass: one that is not cached yet, and those that depend on it."""
    groups: dict[Branch, list[Branch]] = {}
    root_of: dict[Branch, Branch] = {}
    for branch in branches:
        root_of[branch] = branch if branch.depends_on is None else root_of[branch.depends_on]
        groups.setdefault(root_of[branch], []).append(branch)
    return list(groups.values())


def plan_passes(branches: Sequence[Branch]) -> list[list[Branch]]:
    """The branches of each pass: all in one, except those so long that the others would be mostly padding (new
    prompts)."""
    groups = sorted(dependency_groups(branches), key=lambda group: group[0].row)
    lengths = [sum(len(branch.tokens) for branch in group) for group in groups]
    return [[branch for number in numbers for branch in groups[number]] for numbers in split_long(lengths)]


def split_long(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of the groups of each pass, ascending: long groups run separately from much shorter ones.

    Args:
        lengths: tokens of each group.
    """
    passes: list[list[int]] = []
    total = 0
    for number in sorted(range(len(lengths)), key=lambda number: (lengths[number], number)):
        if not passes or lengths[number] > max(_ALWAYS_TOGETHER, _MUCH_LONGER * total):
            passes.append([])
            total = 0
        passes[-1].append(number)
        total += lengths[number]
    return [sorted(each) for each in passes]


def batch_rows(branches: Sequence[Branch], capacity: int) -> list[list[Branch]]:
    """The branches of each batch row of a pass. capacity: slots of the pool."""
    visible = float(np.mean([len(visible_slots([branch], capacity)) for branch in branches]))
    together = len(visible_slots(branches, capacity))
    rows = pack_rows([len(branch.tokens) for branch in branches], visible, together)
    return [[branches[number] for number in row] for row in rows]


def visible_slots(row: Sequence[Branch], capacity: int) -> np.ndarray:
    """All slots that the branches of a batch row attend to, ascending; slot 0, for padding, comes first."""
    is_visible = np.zeros(capacity, dtype=bool)
    is_visible[0] = True
    for branch in row:
        is_visible[branch.slots] = True
    return np.flatnonzero(is_visible)


def build_batch(rows: Sequence[Sequence[Branch]], capacity: int, width: int = 0, gathered: int = 0) -> Batch:
    """Lay out a pass. The last token of each branch is at the end of its row, in the order of the branches.

    Args:
        rows: the branches of each batch row. capacity: slots of the pool.
        width, gathered: least size of a row and of what it sees.
    """
    visible = [visible_slots(row, capacity) for row in rows]
    width = max(width, *(sum(len(branch.tokens) for branch in row) for row in rows))
    gathered = max(gathered, *map(len, visible))
    ids = np.zeros((len(rows), width), dtype=np.int64)
    batch = Batch(
        input_ids=ids,
        position_ids=np.zeros_like(ids),
        slots=np.zeros_like(ids),
        gather_slots=np.zeros((len(rows), gathered), dtype=np.int64),
        mask=np.zeros((len(rows), 1, width, gathered), dtype=bool),
    )
    column_of = np.zeros(capacity, dtype=np.int64)  # of each slot in the row's gathered slots
    for number, (row, slots) in enumerate(zip(rows, visible, strict=True)):
        batch.gather_slots[number, : len(slots)] = slots
        column_of[slots] = np.arange(len(slots))
        _fill_row(batch, number, row, column_of)
    return batch


def _fill_row(batch: Batch, number: int, row: Sequence[Branch], column_of: np.ndarray) -> None:
    first_end = batch.input_ids.shape[1] - len(row)
    position = first_end - sum(len(branch.tokens) - 1 for branch in row)
    batch.mask[number, 0, :position, 0] = True  # padding attends to slot 0
    for end, branch in enumerate(row, start=first_end):
        count = len(branch.tokens)
        start = len(branch.slots) - count
        positions = np.array([*range(position, position + count - 1), end])
        position += count - 1
        batch.input_ids[number, positions] = branch.tokens
        batch.position_ids[number, positions] = np.arange(start, len(branch.slots))
        batch.slots[number, positions] = branch.slots[start:]
        queries = positions[:, None]
        batch.mask[number, 0, queries, column_of[branch.slots[:start]]] = True
        batch.mask[number, 0, queries, column_of[branch.slots[start:]]] = np.tri(count, dtype=bool)
