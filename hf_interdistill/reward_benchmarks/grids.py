"""The tables of a benchmark's report: scores beside baselines, accuracy at equal lengths, differences of models."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..utils.wording import INCONCLUSIVE, signed
from .analysis import Analysis
from .baselines import FIRST
from .batch_check import BatchCheck
from .running import BenchmarkRun
from .statistics import FEW_ITEMS, Estimate

TOTAL = "total"


@dataclass(frozen=True)
class Report:
    """What there is to say of one benchmark.

    Args:
        runs: by model. analysis: of these models. checks: by model, `None` where texts were scored one by one.
    """

    runs: Mapping[str, BenchmarkRun]
    analysis: Analysis
    checks: Mapping[str, BatchCheck | None]

    @property
    def names(self) -> list[str]:
        """Of all scores, in order."""
        return list(next(iter(self.analysis.models.values())).scores)

    @property
    def has_order(self) -> bool:
        """Whether the published rows have an order of answers."""
        return FIRST in self.analysis.baselines


@dataclass(frozen=True)
class Grid:
    """A table as texts: a title, the columns' names (the first is empty), and rows."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]


def short_names(models: list[str]) -> dict[str, str]:
    """The last part of each name, or the whole where two would be alike."""
    shorts = [os.path.basename(model.rstrip("/")) or model for model in models]
    return {model: short if shorts.count(short) == 1 else model for model, short in zip(models, shorts, strict=True)}


def grids(benchmark: str, report: Report, *, digits: int, width: int | None = None) -> list[Grid]:
    """All tables of a benchmark.

    Args:
        digits: of scores.
        width: models side by side, one less beside columns of published places and one more beside no baselines; by
            default all in one table.
    """
    models = list(report.runs)
    size = width or len(models)
    pairs = [(model, other) for number, model in enumerate(models) for other in models[:number]]
    scores = _parts(models, max(1, size - report.has_order) if width else size)
    found = [_scores(benchmark, report, part, digits) for part in scores]
    found += [_matched(benchmark, report, part, digits) for part in _parts(models, size + 1 if width else size)]
    return found + [_differences(benchmark, report, part) for part in _parts(pairs, width or max(1, len(pairs)))]


def _parts(values: Sequence, size: int) -> list[Sequence]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _scores(benchmark: str, report: Report, models: Sequence[str], digits: int) -> Grid:
    analysis, names = report.analysis, short_names(list(report.runs))
    first = next(iter(analysis.models.values())).scores
    rows = []
    for name in report.names:
        cells = [name, str(first[name].items)]
        for baseline, scores in analysis.baselines.items():
            is_above = analysis.minus_chance[baseline][name].low > 0
            cells.append(f"{scores[name]:.{digits}f}{'*' if is_above else ''}")
        for model in models:
            of_model, score = analysis.models[model], report.runs[model].result.scores()[name]
            mark = of_model.against_baseline[name].mark
            cells.append(f"{score:.{digits}f} ({bounds(of_model.scores[name], digits - 1)}){mark}")
        rows.append(cells)
    ties = [str(report.runs[model].result.ties) for model in models]
    rows.append(["ties", *[""] * (1 + len(analysis.baselines)), *ties])
    return Grid(benchmark, ("", "items", *analysis.baselines, *(names[model] for model in models)), rows)


def _matched(benchmark: str, report: Report, models: Sequence[str], digits: int) -> Grid:
    analysis, names = report.analysis, short_names(list(report.runs))
    rows = []
    for name, (first, pairs) in analysis.models[models[0]].length_matched.items():
        cells = [name, str(first.items), str(pairs)]
        for model in models:
            accuracy, _ = analysis.models[model].length_matched[name]
            cells.append(INCONCLUSIVE if accuracy.items < FEW_ITEMS else interval(accuracy, digits))
        rows.append(cells)
    title = f"{benchmark}: accuracy over pairs with lengths within {100 * analysis.length_share:g} %"
    return Grid(title, ("", "items", "pairs", *(names[model] for model in models)), rows)


def _differences(benchmark: str, report: Report, pairs: Sequence[tuple[str, str]]) -> Grid:
    names = short_names(list(report.runs))
    rows = []
    for name in report.names:
        found = [report.analysis.models[model].differences[other][name] for model, other in pairs]
        rows.append([name, *map(points, found)])
    columns = (f"{names[model]} minus {names[other]}" for model, other in pairs)
    return Grid(f"{benchmark}: differences in points", ("", *columns), rows)


def interval(estimate: Estimate, digits: int = 3) -> str:
    """A share with its interval: `0.634 (.58-.68)`."""
    return f"{estimate.value:.{digits}f} ({bounds(estimate, digits - 1)})"


def bounds(estimate: Estimate, digits: int) -> str:
    """The interval of a share, without the zeros before the points, as there are many."""
    shown = (f"{min(max(bound, 0.0), 1.0):.{digits}f}" for bound in (estimate.low, estimate.high))
    return "-".join(each.removeprefix("0") for each in shown)


def points(estimate: Estimate) -> str:
    """A difference with its interval; `*` where this leaves zero out."""
    shown = f"{signed(estimate.value)} ({signed(estimate.low)} to {signed(estimate.high)})"
    return shown + "*" * estimate.excludes_zero
