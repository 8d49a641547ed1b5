"""What the pictures share: colors, style, dots with intervals, legends."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ..measures.estimates import Estimate

# Okabe and Ito's colors, told apart by color-blind readers too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelcolor": "#3b4048",
    "xtick.color": "#3b4048",
    "ytick.color": "#3b4048",
    "legend.frameon": False,
    "text.parse_math": False,  # names of models are no formulas
}
WIDTH = 7.6


def color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def new_figure(height: float, columns: int = 1, **options):
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False, **options)[0]


def error_bars(estimate: Estimate) -> list[list[float]]:
    return [[max(estimate.value - estimate.low, 0)], [max(estimate.high - estimate.value, 0)]]


def point(axis, x: float, estimate: Estimate, scale: float = 100, **options) -> None:
    """A dot with its interval; nothing where the number is not defined."""
    if not np.isnan(estimate.value):
        error = np.array(error_bars(estimate)) * scale
        axis.errorbar([x], [scale * estimate.value], yerr=error, capsize=4, markersize=7, **options)


def chance_line(
    axis, limits: tuple[float, float] = (0, 103), label: str = "pairs ranked correctly (%)\ndashed: chance"
) -> None:
    axis.axhline(50, color="#8a8f98", linewidth=1, linestyle=(0, (4, 3)))
    axis.set_ylim(*limits)
    axis.set_ylabel(label)


def legend(figure, axis, shown) -> None:
    if len(shown) > 1:
        handles = [axis.plot([], [], "o-", color=color(number))[0] for number, _ in shown]
        labels = [short(each.model) for _, each in shown]
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(shown)))


def short(name: str) -> str:
    return name if len(name) <= 32 else "…" + name[-31:]
