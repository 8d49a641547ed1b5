"""Which texts stand side by side in a forward pass: pure arithmetic over lengths.

A pass has lines of equal width. Every token of a line is compared with all that any token of the line sees, so few
long lines waste comparisons; each line fetches what it sees, so many short lines waste copies; and the shorter ones
are padded. What all feeds see may be kept apart (`split_attention.py`): then it is fetched once, and no line has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# What things cost, in comparisons of one token with another; from profiles of small models on a CPU.
_FETCH = 200  # a token's keys and values copied
_TOKEN = 4000  # all of a layer but attention, for one token; more in wider models, so padding is the worst waste
SPLIT_COST = 10_000  # attention in two parts instead of one

_MOST_LINES = 64
_WIDE = 32  # tokens; families up to here are always read together, feeds up to here stay in their order
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


def choose_lines(
    lengths: Sequence[int], own: float, all_of_them: int, common: int = 0, split_cost: float = SPLIT_COST
) -> tuple[list[list[int]], bool]:
    """Part the feeds of a pass into lines, so that it costs least.

    Args:
        lengths: tokens of each feed, in an order that has feeds which see the same side by side.
        own: tokens that a feed sees, on average. all_of_them: tokens that they see together.
        common: tokens that each of them sees, if they may be kept apart. split_cost: what that costs.

    Returns:
        The places of the feeds of each line, and whether to keep the common tokens apart.
    """
    cost, lines = _choose(lengths, own, all_of_them, 0)
    if common:
        apart_cost, split_lines = _choose(lengths, own - common, all_of_them - common, common)
        if apart_cost + split_cost < cost:
            return split_lines, True
    return lines, False


def _choose(lengths: Sequence[int], own: float, all_of_them: int, apart: int) -> tuple[float, list[list[int]]]:
    """The least cost, and its lines; `apart` tokens are compared with, but belong to no line."""
    order = _long_beside_short(lengths)
    sizes = np.array([lengths[place] for place in order])
    middles = np.cumsum(sizes) - sizes / 2
    counts = np.arange(1, min(len(order), _MOST_LINES) + 1)[:, None]
    line_of = np.minimum((middles * counts / sizes.sum()).astype(np.int64), counts - 1)
    cells = line_of + _MOST_LINES * (counts - 1)
    sums = np.bincount(cells.ravel(), weights=np.tile(sizes, len(counts)), minlength=_MOST_LINES * len(counts))
    widths = sums.reshape(len(counts), _MOST_LINES).max(axis=1)
    seen = own + (all_of_them - own) / counts[:, 0]
    costs = counts[:, 0] * (widths * (_TOKEN + apart + seen) + _FETCH * seen) + _FETCH * apart
    best = int(costs.argmin())
    lines: dict[int, list[int]] = {}
    for place, line in zip(order, line_of[best].tolist(), strict=True):
        lines.setdefault(line, []).append(place)
    return float(costs[best]), list(lines.values())


def _long_beside_short(lengths: Sequence[int]) -> list[int]:
    """Places in order; of long feeds the longest beside the shortest, for neighbors then sum up alike."""
    if max(lengths) <= _WIDE:
        return list(range(len(lengths)))
    rising = sorted(range(len(lengths)), key=lambda place: (lengths[place], place))
    pairs = zip(rising[::-1], rising, strict=True)
    return [place for pair in list(pairs)[: (len(rising) + 1) // 2] for place in dict.fromkeys(pair)]
