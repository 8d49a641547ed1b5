"""One picture per measure, several models side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ..result import Diagnosis
from .context_plots import draw_early_context, draw_swapped_prompt, draw_turn_removal
from .drawing import STYLE, WIDTH, chance_line, color, error_bars, legend, new_figure, point, short
from .optional_plots import draw_best_of_n, draw_noise


def draw(diagnoses: Sequence[Diagnosis]) -> dict[str, bytes]:
    """A PNG for each measure, by the measure's name; a measure that no model has gets none."""
    plots: dict[str, Callable] = {
        "accuracy": _accuracy,
        "masking": _masking,
        "swapped_prompt": draw_swapped_prompt,
        "early_context": draw_early_context,
        "turn_removal": draw_turn_removal,
        "cue": _cue,
        "length": _length,
        "attention": _attention,
        "calibration": _calibration,
        "label_noise": draw_noise,
        "best_of_n": draw_best_of_n,
    }
    pictures = {}
    for name, plot in plots.items():
        shown = [(number, each) for number, each in enumerate(diagnoses) if getattr(each, name) is not None]
        if shown:
            with rc_context(STYLE):  # type: ignore[arg-type]
                buffer = BytesIO()
                plot(shown).savefig(buffer, format="png", dpi=144)
            pictures[name] = buffer.getvalue()
    return pictures


def _categories(shown, labels: Sequence[str], estimates: Callable, height: float = 3.1) -> Figure:
    """Dots with intervals: one index a label, models beside each other."""
    figure, (axis,) = new_figure(height)
    step = min(0.16, 0.7 / len(shown))
    for index, (number, each) in enumerate(shown):
        shift = (index - (len(shown) - 1) / 2) * step
        for x, estimate in enumerate(estimates(each)):
            point(axis, x + shift, estimate, color=color(number), fmt="o")
    axis.set_xticks(range(len(labels)), labels)
    axis.set_xlim(-0.5, len(labels) - 0.5)
    axis.grid(visible=False, axis="x")
    chance_line(axis)
    legend(figure, axis, shown)
    return figure


def _accuracy(shown) -> Figure:
    figure, (axis,) = new_figure(0.9 + 0.42 * len(shown))
    for row, (number, each) in enumerate(shown):
        estimate = each.accuracy.accuracy
        if not np.isnan(estimate.value):
            error = np.array(error_bars(estimate)) * 100
            axis.barh(row, 100 * estimate.value, height=0.55, color=color(number), alpha=0.85)
            axis.errorbar([100 * estimate.value], [row], xerr=error, color="#22262c", capsize=4)
        ties = f"{100 * each.accuracy.ties.value:.1f} % ties"
        axis.annotate(ties, (101, row), va="center", fontsize=8.5, color="#6b7079", annotation_clip=False)
    axis.axvline(50, color="#8a8f98", linewidth=1, linestyle=(0, (4, 3)))
    axis.set_yticks(range(len(shown)), [short(each.model) for _, each in shown])
    axis.set_xlim(0, 100)
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("pairs ranked correctly (%), dashed: chance")
    return figure


def _masking(shown) -> Figure:
    figure, axes = new_figure(3.6, 3, sharey=True, width_ratios=(4, 4, 2.4))
    for axis, side, title in (
        (axes[0], "first", "Beginning removed"),
        (axes[1], "last", "End removed (control)"),
    ):
        for number, each in shown:
            curve = [each.masking.whole, *getattr(each.masking, side)]
            x = [0.0, *(100 * fraction for fraction in each.masking.fractions)]
            axis.plot(x, [100 * e.value for e in curve], "o-", color=color(number), markersize=5)
            axis.fill_between(
                x, [100 * e.low for e in curve], [100 * e.high for e in curve], color=color(number), alpha=0.15
            )
        axis.set_title(title)
        axis.set_xlabel("content removed (%)")
        chance_line(axis)
    step = min(0.16, 0.7 / len(shown))
    for index, (number, each) in enumerate(shown):
        shift = (index - (len(shown) - 1) / 2) * step
        point(axes[2], shift, each.masking.prompt, color=color(number), fmt="o")
        point(axes[2], 1 + shift, each.masking.response_start, color=color(number), fmt="o")
    axes[2].set_title("Only this removed")
    axes[2].set_xticks([0, 1], ["prompt", f"first {100 * shown[0][1].masking.fractions[-1]:.0f} %\nof response"])
    axes[2].set_xlim(-0.5, 1.5)
    axes[2].grid(visible=False, axis="x")
    axes[2].axhline(50, color="#8a8f98", linewidth=1, linestyle=(0, (4, 3)))
    for axis in axes[1:]:
        axis.set_ylabel("")
    legend(figure, axes[0], shown)
    return figure


def _cue(shown) -> Figure:
    labels = ("phrase on the better response", "no phrase", "phrase on the worse response")
    return _categories(shown, labels, lambda each: (each.cue.on_chosen, each.cue.plain, each.cue.on_rejected))


def _length(shown) -> Figure:
    labels = ("longer response is the better one", "longer response is the worse one")
    return _categories(shown, labels, lambda each: (each.length.longer_is_better, each.length.longer_is_worse))


def _attention(shown) -> Figure:
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(max(WIDTH, 3.6 * columns), 3.3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axis in grid.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, (_, each) in zip(grid.flat, shown, strict=False):
        groups = (("right", each.attention.right, "#5b7f95"), ("wrong", each.attention.wrong, "#c8553d"))
        for index, (name, masses, shade) in enumerate(groups):
            for x, estimate in zip((-1.4, *range(len(masses.stages))), (masses.sink, *masses.stages), strict=True):
                if np.isnan(estimate.value):
                    continue
                axis.bar(
                    x + (index - 0.5) * 0.38, 100 * estimate.value, 0.36, color=shade, alpha=0.55 if x < 0 else 1,
                    yerr=np.array(error_bars(estimate)) * 100, error_kw={"capsize": 2, "ecolor": "#22262c", "lw": 1},
                )  # fmt: skip
            axis.bar(0, 0, color=shade, label=f"{masses.sink.pairs} pairs ranked {name}")
        stages = len(each.attention.right.stages)
        axis.axvline(-0.75, color="#c3c7cd", linewidth=1)
        axis.set_xticks([-1.4, *range(stages)], ["first\ntoken", *(str(n + 1) for n in range(stages))])
        axis.set_xlabel("fifth of the text, from its beginning")
        axis.set_title(short(each.model))
        axis.grid(visible=False, axis="x")
        axis.legend(fontsize=8.5, loc="upper center", ncols=2 if len(shown) == 1 else 1)
    grid[0][0].set_ylim(0, 1.28 * grid[0][0].get_ylim()[1])  # shared by all; room for the legends
    for row in grid:
        row[0].set_ylabel("attention of the scored token (%)")
    return figure


def _calibration(shown) -> Figure:
    figure, (axis,) = new_figure(4.2)
    axis.plot([0, 1], [0, 1], color="#8a8f98", linewidth=1, linestyle=(0, (4, 3)))
    for number, each in shown:
        bins = each.calibration.bins
        sizes = [12 + 160 * one.pairs / each.pairs for one in bins]
        x, y = [one.probability for one in bins], [one.share for one in bins]
        axis.plot(x, y, color=color(number), linewidth=1.2)
        axis.scatter(x, y, s=sizes, color=color(number), alpha=0.85, zorder=3)
    axis.set_xlim(-0.03, 1.03)
    axis.set_ylim(-0.03, 1.03)
    axis.set_aspect("equal")
    axis.set_xlabel("probability the model gives to the first response")
    axis.set_ylabel("how often the first one is better")
    legend(figure, axis, shown)
    return figure
