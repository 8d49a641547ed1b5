"""Keys of cached teacher maps: a hash of what the teacher reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from .teacher_inputs import TeacherInput


def map_keys(rows: Sequence[TeacherInput], units: int, *, has_late_interaction: bool) -> list[tuple[int, int]]:
    """The keys of a pair's maps, one for each reading order; with late interaction both are the same.

    Args:
        rows: of the pair, from `PairLayout.pack`.
        units: number of units that they are mapped onto.
        has_late_interaction: as in `PairLayout`.
    """
    return [map_key(rows, units)] * 2 if has_late_interaction else [map_key([row], units) for row in rows]


def map_key(rows: Sequence[TeacherInput], units: int) -> tuple[int, int]:
    """128 bits that identify one teacher input and the units it is mapped onto, as two signed 64-bit numbers."""
    digest = hashlib.blake2b(digest_size=16)
    parts = [part for row in rows for part in (row.ids, row.types, row.units, row.score_positions)]
    for numbers in (*parts, [units]):
        digest.update(np.array([len(numbers), *numbers], dtype="<i8").tobytes())
    first, second = np.frombuffer(digest.digest(), dtype="<i8").tolist()
    return first, second
