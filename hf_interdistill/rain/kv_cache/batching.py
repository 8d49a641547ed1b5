"""Which texts are read in one forward pass: pure arithmetic over lengths."""

from __future__ import annotations

from collections.abc import Sequence

_WIDE = 32  # tokens; families up to here are always read together
_MUCH_WIDER = 4  # a family longer than so many times all shorter ones together is read apart


def families(parents: Sequence[int | None]) -> list[list[int]]:
    """Feeds that must stand in one pass: a feed (an earlier one) that others go on from, and these.

    Args:
        parents: for each feed the feed that it goes on from, or `None`.

    Returns:
        The numbers of the feeds of each family, ascending.
    """
    members: dict[int, list[int]] = {}
    roots: list[int] = []
    for number, parent in enumerate(parents):
        roots.append(number if parent is None else roots[parent])
        members.setdefault(roots[-1], []).append(number)
    return list(members.values())


def split_passes(lengths: Sequence[int]) -> list[list[int]]:
    """Families to read in one pass: all, but for those beside which all others would be padding (new prompts).

    Args:
        lengths: tokens of each family.

    Returns:
        The numbers of the families of each pass, ascending.
    """
    passes: list[list[int]] = []
    total = 0
    for number in sorted(range(len(lengths)), key=lambda number: (lengths[number], number)):
        if not passes or lengths[number] > max(_WIDE, _MUCH_WIDER * total):
            passes.append([])
            total = 0
        passes[-1].append(number)
        total += lengths[number]
    return [sorted(each) for each in passes]
