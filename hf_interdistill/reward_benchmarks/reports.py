"""Results of models side by side, as JSON and as Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from ..utils.atomic_io import write_atomically
from .items import Result
from .running import BenchmarkRun

Results = Mapping[str, Mapping[str, BenchmarkRun]]  # benchmark -> model -> scores


def table(result: Result) -> dict[str, float | int]:
    """The lines of a result: subsets, sections, total, and the counts."""
    lines: dict[str, float | int] = {name: subset.score for name, subset in result.subsets.items()}
    lines |= {f"[{name}]": score for name, score in result.sections.items()}
    return {**lines, "total": result.total, "rows": result.rows, "ties": result.ties}


def short_names(models: list[str]) -> dict[str, str]:
    """The last part of each name, or the whole where two would be alike."""
    shorts = [os.path.basename(model.rstrip("/")) or model for model in models]
    return {model: short if shorts.count(short) == 1 else model for model, short in zip(models, shorts, strict=True)}


def markdown(results: Results) -> str:
    """One table per benchmark, one column per model."""
    parts = []
    for benchmark, by_model in results.items():
        names = short_names(list(by_model))
        columns = {names[model]: table(scored.result) for model, scored in by_model.items()}
        lines = [
            f"## {benchmark}",
            "",
            f"| | {' | '.join(map(_text, columns))} |",
            f"| --- |{' ---: |' * len(columns)}",
        ]
        for name in dict.fromkeys(name for column in columns.values() for name in column):
            cells = " | ".join(_cell(column.get(name)) for column in columns.values())
            lines.append(f"| {_text(name)} | {cells} |")
        lines += ["", *notes(by_model)]
        parts.append("\n".join(lines).rstrip())
    return "\n\n".join(parts) + "\n"


def notes(by_model: Mapping[str, BenchmarkRun]) -> list[str]:
    """What makes these figures differ from published ones."""
    result = next(iter(by_model.values())).result
    lines = []
    if result.missing:
        lines.append(f"Not in the data: {', '.join(result.missing)}. The total is over the rest.")
    cut = {model: scored.cut_texts for model, scored in by_model.items() if scored.cut_texts}
    lines += [f"{names} cut {count} texts to `max_length`." for names, count in cut.items()]
    return lines


def write(results: Results, folder: Path) -> None:
    """`results.json` and `results.md`."""
    content = [
        {"benchmark": benchmark, "model": model, **scored.result.to_dict(), "cut_texts": scored.cut_texts}
        for benchmark, by_model in results.items()
        for model, scored in by_model.items()
    ]
    write_atomically(folder / "results.json", json.dumps(content, indent=2) + "\n")
    write_atomically(folder / "results.md", markdown(results))


def _text(name: str) -> str:
    """A name as a cell: neither a bar nor a line break may end it."""
    return " ".join(name.split()).replace("|", "\\|")


def _cell(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4f}"
