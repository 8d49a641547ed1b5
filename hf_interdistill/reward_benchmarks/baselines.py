"""Scores of choices that need no model: by chance, the longest, the shortest, the first, the last.

Source: ours. The length is that of the answer's text in characters. Answers of equal length are a tie that counts as
chance would have it: half in a pair, `1/m` where `m` answers share the best place. `chance` is all ties. RewardBench
2's Ties is a formula of gaps, in which a tie is a gap of zero. Places are those in the published row. Rows that name
the right answers have no order, so there `first` and `last` are not defined. Of two answers, `last` is the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .items import Benchmark, Item, Result, Rewards

CHANCE, LONGEST, SHORTEST, FIRST, LAST = "chance", "longest", "shortest", "first", "last"
_BY_LENGTH: dict[str, Callable[[Item], Rewards]] = {
    CHANCE: lambda item: [0.0] * len(item.candidates),
    LONGEST: lambda item: [float(len(text)) for text in item.candidates],
    SHORTEST: lambda item: [-float(len(text)) for text in item.candidates],
}
_BY_PLACE: dict[str, Callable[[Item], Rewards]] = {
    FIRST: lambda item: [-float(place) for place in item.order or ()],
    LAST: lambda item: [float(place) for place in item.order or ()],
}


def baseline_rewards(items: Sequence[Item]) -> dict[str, list[Rewards]]:
    """Rewards of every item by each baseline that is defined for all items."""
    choices = {**_BY_LENGTH, **(_BY_PLACE if all(item.order is not None for item in items) else {})}
    return {name: [reward(item) for item in items] for name, reward in choices.items()}


def baseline_results(
    benchmark: Benchmark, items: Sequence[Item], rewards: Mapping[str, Sequence[Rewards]]
) -> dict[str, Result]:
    """The benchmark's own scores of each baseline, with ties as chance would have them."""
    return {name: benchmark.aggregate(items, each, is_tie_half=True) for name, each in rewards.items()}
