"""Results of models side by side, as JSON, as Markdown, and for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from ..utils.atomic_io import write_atomically
from ..utils.wording import FLAG, INCONCLUSIVE, PASS, count, signed, verdict_of
from .analysis import Analysis
from .batch_check import BatchCheck
from .grids import TOTAL, Grid, Report, grids, interval, short_names
from .length import ALL, chance_shown

_WIDTH = 2  # models side by side, so that a table has about 100 columns
_MARKS = (
    "`!`: not above the best baseline of the line. `?`: above it, but the 95 % interval of the paired difference "
    "includes zero. `*`: the interval of the baseline minus chance, or of the difference, excludes zero."
)


def tables(benchmark: str, report: Report) -> list[Table]:
    """The tables for the terminal."""
    found = []
    for grid in grids(benchmark, report, digits=3, width=_WIDTH):
        table = Table(title=grid.title, title_justify="left")
        for number, column in enumerate(grid.columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in grid.rows:
            if row[0] in ("ties", ALL):
                table.add_section()
            table.add_row(*row)
        found.append(table)
    return found


def markdown(reports: Mapping[str, Report]) -> str:
    """The same tables with all models side by side, and what there is to say of them."""
    parts = []
    for benchmark, report in reports.items():
        first, *others = grids(benchmark, report, digits=4)
        lines = [f"## {benchmark}", "", *_markdown_table(first), "", *(f"- {note}" for note in notes(report))]
        for grid in others:
            lines += ["", f"### {grid.title}", "", *_markdown_table(grid)]
        parts.append("\n".join(lines).rstrip())
    return "\n\n".join(parts) + "\n"


def _markdown_table(grid: Grid) -> list[str]:
    _, *columns = map(_text, grid.columns)
    lines = [f"| | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    return lines + [f"| {' | '.join(map(_text, row))} |" for row in grid.rows]


def notes(report: Report) -> list[str]:
    """How to read the table, and what is not in it."""
    runs, analysis = report.runs, report.analysis
    names = short_names(list(runs))
    lines = [
        "Baselines need no model; equal lengths (in characters) count as chance would have them. "
        + ("`last` of two answers is the second." if report.has_order else "The rows have no order of answers."),
        f"Intervals are 95 %. {_MARKS}",
        f"`{PASS}`: the interval lies above chance, or above the other model; `{FLAG}`: below; `{INCONCLUSIVE}`: "
        "neither, or too few items.",
    ]
    missing = next(iter(runs.values())).result.missing
    if missing:
        lines.append(f"Not in the data: {', '.join(missing)}. The total is over the rest.")
    lines += [
        f"{names[model]} cut {run.cut_texts} texts to `max_length`." for model, run in runs.items() if run.cut_texts
    ]
    for model in runs:
        lines += [f"{names[model]}: {line}" for line in (_length(analysis, model), _check(report.checks.get(model)))]
    models = list(runs)
    for number, model in enumerate(models):
        lines += [_difference(analysis, names, model, other) for other in models[:number]]
    return lines


def write(reports: Mapping[str, Report], folder: Path) -> None:
    """`results.json` and `results.md`."""
    content = [
        {
            **{"benchmark": benchmark, "model": model, **run.result.to_dict(), "cut_texts": run.cut_texts},
            **report.analysis.to_dict(model),
            "batch_check": None if (check := report.checks.get(model)) is None else check.to_dict(),
        }
        for benchmark, report in reports.items()
        for model, run in report.runs.items()
    ]
    write_atomically(folder / "results.json", json.dumps(content, indent=2) + "\n")
    write_atomically(folder / "results.md", markdown(reports))


def _length(analysis: Analysis, model: str) -> str:
    of_model = analysis.models[model]
    accuracy, pairs = of_model.length_matched[ALL]
    share = "no pair differs in length"
    if of_model.longer_preferred == of_model.longer_preferred:
        share = f"prefers the longer answer in {100 * of_model.longer_preferred:.1f} % of pairs"
    matched = f"no pair has lengths within {100 * analysis.length_share:g} %"
    if pairs:
        matched = (
            f"right in {interval(accuracy)} of the {count(pairs, 'pair')} (of {count(accuracy.items, 'item')}) with "
            f"lengths within {100 * analysis.length_share:g} %, against chance: {chance_shown(accuracy)}"
        )
    return f"{share}; {matched}."


def _check(check: BatchCheck | None) -> str:
    if check is None:
        return "batches were not checked (texts were scored one by one, or by a server or an ensemble)."
    return (
        f"batch invariance: {check.verdict}; rewards of {check.texts} texts alone and in batches differ by up to "
        f"{check.largest:.2g} ({check.relative:.2g} of the largest; {check.tolerance:g} is allowed), and "
        f"{check.changed} of {count(check.choices, 'choice')} change."
    )


def _difference(analysis: Analysis, names: Mapping[str, str], model: str, other: str) -> str:
    found = analysis.models[model].differences[other][TOTAL]
    return (
        f"{names[model]} minus {names[other]}, total: {verdict_of(found.low, found.high)}; {signed(found.value)} "
        f"points, 95 % interval {signed(found.low)} to {signed(found.high)}."
    )


def _text(name: str) -> str:
    """A name as a cell: neither a bar nor a line break may end it."""
    return " ".join(name.split()).replace("|", "\\|")
