"""Pictures of the measures that ask whether the prompt is read."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from ..measures.turn_removal import PLACES
from .drawing import chance_line, color, legend, new_figure, point

_GRAY = "#3b4048"
_HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 1.6}


def draw_swapped_prompt(shown) -> Figure:
    """Share of answers with more reward under their own prompt: all, better and worse ones."""
    figure, (axis,) = new_figure(3.1)
    labels = {"own": "all answers", "chosen": "better answers", "rejected": "worse answers"}
    for number, shift, each in _beside(shown):
        for x, part in enumerate(labels):
            point(axis, x + shift, getattr(each.swapped_prompt, part), color=color(number), fmt="o")
    _name_places(axis, list(labels.values()))
    chance_line(axis, label="own prompt gets more (%)\ndashed: it is not read")
    legend(figure, axis, shown)
    return figure


def draw_early_context(shown) -> Figure:
    """How often an instruction is followed, by its distance from the end of the prompt; models a little apart."""
    figure, (axis,) = new_figure(3.7)
    for number, shift, each in _beside(shown):
        found, shade = each.early_context, color(number)
        ends = [(found.distance_last, found.last), *((one.median, one.accuracy) for one in found.bins)]
        places = [max(distance, 1) * 2**shift for distance, _ in ends]
        heights = [100 * accuracy.value for _, accuracy in ends]
        axis.plot(places[1:], heights[1:], color=shade, linewidth=1.2)
        axis.plot(places[:2], heights[:2], color=shade, linewidth=1.2, linestyle=(0, (1, 2)))
        point(axis, places[0], ends[0][1], color=shade, fmt="s", **_HOLLOW)
        for place, (_, accuracy) in zip(places[1:], ends[1:], strict=True):
            point(axis, place, accuracy, color=shade, fmt="o")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xlabel("tokens from the instruction to the end of the prompt")
    chance_line(axis, label="instruction followed (%)\ndashed: it is not read")
    _explain(axis, ("o", "instruction at the beginning"), ("s", "at the end (control)"))
    legend(figure, axis, shown)
    return figure


def draw_turn_removal(shown) -> Figure:
    """How far margins move without a turn, and without as many tokens at a random place."""
    figure, (axis,) = new_figure(3.4)
    for number, shift, each in _beside(shown, width=0.2):
        for x, place in enumerate(PLACES):
            turn = getattr(each.turn_removal, place)
            point(axis, x + shift - 0.035, turn.change, scale=1, color=color(number), fmt="o")
            point(axis, x + shift + 0.035, turn.control, scale=1, color=color(number), fmt="s", **_HOLLOW)
    _name_places(axis, [f"{place} turn removed" for place in PLACES])
    top = max(axis.get_ylim()[1], 0.1)
    axis.set_ylim(-0.03 * top, top)
    axis.set_ylabel("change of the difference of rewards\n(standard deviations of the margins)")
    _explain(axis, ("o", "without the turn"), ("s", "without as many tokens at a random place (control)"))
    legend(figure, axis, shown)
    return figure


def _beside(shown, width: float = 0.16):
    """The number of each model, where its dots are beside those of the others, and the model."""
    step = min(width, 0.7 / len(shown))
    return [(number, (index - (len(shown) - 1) / 2) * step, each) for index, (number, each) in enumerate(shown)]


def _name_places(axis, labels: list[str]) -> None:
    axis.set_xticks(range(len(labels)), labels)
    axis.set_xlim(-0.5, len(labels) - 0.5)
    axis.grid(visible=False, axis="x")


def _explain(axis, filled: tuple[str, str], hollow: tuple[str, str]) -> None:
    """What filled and hollow dots are."""
    handles = [
        axis.plot([], [], filled[0], color=_GRAY, label=filled[1])[0],
        axis.plot([], [], hollow[0], color=_GRAY, label=hollow[1], **_HOLLOW)[0],
    ]
    axis.legend(handles=handles, fontsize=8.5, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=2)
