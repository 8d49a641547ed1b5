"""The picture of differences with their intervals: where everything stands, which the template draws as SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config import BASELINE
from ..result import Comparison
from ..statistics import Estimate
from .text import points

WIDTH, _MARGIN = 380.0, 14.0


@dataclass(frozen=True)
class Line:
    """One difference: what it is of, its numbers as text, and x coordinates (of `seeds`: each seed's own)."""

    label: str
    text: str
    value: float
    low: float
    high: float
    seeds: tuple[float, ...]
    is_shown: bool  # whether the interval leaves zero out


@dataclass(frozen=True)
class IntervalPlot:
    """x coordinates of the picture in a box of `width`, a strip a line; `ticks` are positions with their labels."""

    width: float
    zero: float
    lines: tuple[Line, ...]
    ticks: tuple[tuple[float, str], ...]


def interval_plot(comparison: Comparison) -> IntervalPlot:
    """The differences of all models from the baseline, on the held-out pairs and on each benchmark."""
    baseline = comparison.model(BASELINE).of_seeds
    found: list[tuple[str, Estimate, list[float]]] = []
    for model in comparison.models:
        if model.difference is not None:
            seeds = [model.of_seeds[seed] - baseline[seed] for seed in comparison.seeds]
            found.append((f"{model.name}, held-out pairs", model.difference, seeds if len(seeds) > 1 else []))
    for benchmark in comparison.benchmarks:
        found += [(f"{name}, {benchmark.name}", each, []) for name, each in benchmark.differences.items()]
    values = [100 * value for _, each, seeds in found for value in (each.low, each.high, *seeds)]
    ticks = _ticks(min(0.0, *values), max(0.0, *values))
    low, high = ticks[0], ticks[-1]

    def x(share: float) -> float:
        return round(_MARGIN + (100 * share - low) / (high - low) * (WIDTH - 2 * _MARGIN), 1)

    lines = tuple(
        Line(
            label=label,
            text=points(each),
            value=x(each.value),
            low=x(each.low),
            high=x(each.high),
            seeds=tuple(map(x, seeds)),
            is_shown=each.excludes_zero,
        )
        for label, each, seeds in found
    )
    marks = tuple((x(tick / 100), f"{tick:+g}" if tick else "0") for tick in ticks)
    return IntervalPlot(WIDTH, x(0.0), lines, marks)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, about five of them, that enclose an interval."""
    span = max(high - low, 0.2)
    size = 10 ** math.floor(math.log10(span / 4))
    step = next(size * factor for factor in (1, 2, 5, 10) if span / (size * factor) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 6) for number in range(first, max(last, first + 1) + 1)]
