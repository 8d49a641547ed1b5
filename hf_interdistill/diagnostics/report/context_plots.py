"""Plots of the measures that ask whether the prompt is read."""

from __future__ import annotations

import math

from ...utils.pages.charts import Axis, Curves, Interval, Intervals, Plot, Series, color_class
from ..measures.turn_removal import PLACES
from .points import Shown, interval, near, point


def draw_swapped_prompt(shown: Shown) -> list[Plot]:
    """Share of answers with more reward under their own prompt: all, better and worse ones."""
    labels = {"own": "all answers", "chosen": "better answers", "rejected": "worse answers"}
    groups = tuple(
        (label, tuple(interval(number, getattr(each.swapped_prompt, part)) for number, each in shown))
        for part, label in labels.items()
    )
    lows = [getattr(each.swapped_prompt, part).low for _, each in shown for part in labels]
    axis = Axis.percent("own prompt gets more (%), dashed: it is not read", lows)
    return [Intervals("", axis, groups, 0.5)]


def draw_early_context(shown: Shown) -> list[Plot]:
    """How often an instruction is followed, by its distance from the end of the prompt; models a little apart."""
    series, places = [], []
    lows = []
    for index, (number, each) in enumerate(shown):
        found, color = each.early_context, color_class(number)

        def at(distance: float, index: int = index) -> float:
            return max(distance, 1.0) * 2 ** near(0.0, index, len(shown), 0.12)

        early = [point(at(one.median), one.accuracy) for one in found.bins]
        control = point(at(found.distance_last), found.last)
        is_named = not index
        series += [
            Series(color, [control, *early[:1]], line="dotted", mark=""),
            Series(color, early, "instruction at the beginning" if is_named else ""),
            Series(color, [control], "at the end (control)" if is_named else "", line="", mark="square"),
        ]
        places += [each.x for each in (control, *early)]
        lows += [found.last.low, *(one.accuracy.low for one in found.bins)]
    height = Axis.percent("instruction followed (%), dashed: it is not read", lows)
    return [Curves("", _doubling(places), height, tuple(series), 0.5)]


def _doubling(places: list[float]) -> Axis:
    """An axis of distances in tokens on which a doubling is always as wide."""
    low, high = math.floor(math.log2(min(places)) - 0.3), math.ceil(math.log2(max(places)) + 0.1)
    step = max(1, -(-(high - low) // 6))
    ticks = tuple((2.0**power, f"{2**power:g}") for power in range(max(low, 0), high + 1, step))
    return Axis("tokens from the instruction to the end of the prompt", 2.0**low, 2.0**high, ticks, is_log=True)


def draw_turn_removal(shown: Shown) -> list[Plot]:
    """How far margins move without a turn, and without as many tokens at a random place."""
    groups, highest = [], []
    for place in PLACES:
        rows: list[Interval] = []
        for number, each in shown:
            turn = getattr(each.turn_removal, place)
            rows.append(interval(number, turn.change, is_share=False))
            rows.append(interval(number, turn.control, is_share=False, is_hollow=True))
            highest += [turn.change.high, turn.control.high]
        groups.append((f"{place} turn removed", tuple(rows)))
    label = "change of the difference of rewards (standard deviations of the margins)"
    first = color_class(shown[0][0])
    names = ((first, "without the turn"), (f"{first} hollow", "without as many tokens at a random place (control)"))
    return [Intervals("", Axis.around(label, highest), tuple(groups), names=names)]
