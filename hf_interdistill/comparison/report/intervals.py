"""The plot of differences from the baseline with their intervals."""

from __future__ import annotations

from ...utils.pages.charts import Axis, Interval, Intervals
from ..config import BASELINE
from ..result import Comparison
from ..statistics import Estimate
from .text import points


def interval_plot(comparison: Comparison) -> Intervals:
    """The differences of all models in points, on the held-out pairs and on each benchmark; gray ones include zero."""
    baseline = comparison.model(BASELINE).of_seeds
    found: list[tuple[str, Estimate, list[float]]] = []
    for model in comparison.models:
        if model.difference is not None:
            seeds = [model.of_seeds[seed] - baseline[seed] for seed in comparison.seeds]
            found.append((f"{model.name}, held-out pairs", model.difference, seeds if len(seeds) > 1 else []))
    for benchmark in comparison.benchmarks:
        found += [(f"{name}, {benchmark.name}", each, []) for name, each in benchmark.differences.items()]
    values = [100 * value for _, each, seeds in found for value in (each.low, each.high, *seeds)]
    axis = Axis.around("points of accuracy; right of the dashed line: better than the baseline", values)
    groups = tuple((label, (_row(each, seeds),)) for label, each, seeds in found)
    return Intervals("", axis, groups, level=0.0)


def _row(difference: Estimate, seeds: list[float]) -> Interval:
    return Interval(
        "color-0" if difference.excludes_zero else "color-muted",
        100 * difference.value,
        100 * difference.low,
        100 * difference.high,
        points(difference),
        others=tuple(100 * seed for seed in seeds),
    )
