"""Figures of the benchmarks: how one is written down, where all are kept, how they are shown."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from hardware import describe_hardware
from matplotlib.figure import Figure
from rich.table import Table

from hf_interdistill.utils.pictures import save_small_png


def row(name: str, setting: str, ours: float | None, rival: float | None, unit: str) -> dict:
    """One figure, as kept in `results.json`; `None` is a side that ran out of memory."""
    ratio = None if ours is None or rival is None else ours / rival
    figures = {"ours": ours, "rival": rival, "unit": unit, "ratio": ratio}
    return {"name": name, "setting": setting, **figures, "hardware": describe_hardware()}


def keep(results: list[dict], path: Path) -> None:
    """Merge results into a JSON list: a figure measured again replaces the earlier one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    fresh = {(result["name"], result["setting"]) for result in results}
    kept = [result for result in earlier if (result["name"], result["setting"]) not in fresh]
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(kept + results, indent=2), encoding="utf-8")
    os.replace(scratch, path)


def save_plot(figure: Figure, path: Path) -> None:
    """Write a plot of the size that a page shows."""
    save_small_png(figure, path, dpi=100)


def columns(title: str, names: Sequence[str], texts: Sequence[str] = ()) -> Table:
    """An empty table; the columns in `texts` hold words, the others numbers."""
    table = Table(title=f"{title} ({describe_hardware()})", title_justify="left")
    for name in names:
        table.add_column(name, justify="left" if name in texts else "right", overflow="fold")
    return table


def table_of(title: str, results: Sequence[dict], common: str = "") -> Table:
    """The figures side by side with their rivals'.

    Args:
        common: what all settings begin with, left out.
    """
    words = ("figure", "setting")
    table = columns(title, (*words, "ours", "rival", "ours / rival"), words)
    for each in results:
        ours, rival = (_shown(each[side], each["unit"]) for side in ("ours", "rival"))
        ratio = "" if each["ratio"] is None else f"{each['ratio']:.4g}"
        table.add_row(each["name"], each["setting"].removeprefix(common), ours, rival, ratio)
    return table


def _shown(value: float | None, unit: str) -> str:
    return "out of memory" if value is None else f"{value:.3g} {unit}"
