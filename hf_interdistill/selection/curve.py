"""The over-optimization curve as data and picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..utils.atomic_io import write_atomically


def write_curve(points: list[dict[str, float]], path: Path, labels: dict[str, Any]) -> None:
    """Write a curve of `over_optimization_curve` as JSON, and as a picture beside it (`.png`).

    Args:
        points: the curve. path: the JSON file. labels: what the numbers describe; written with them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    finite = [{key: value if math.isfinite(value) else None for key, value in point.items()} for point in points]
    write_atomically(path, json.dumps({**labels, "points": finite}, indent=2) + "\n")
    draw_curve(points).savefig(picture_of(path), dpi=150)


def picture_of(path: str | Path) -> Path:
    """Path of the picture of a curve."""
    return Path(path).with_suffix(".png")


def draw_curve(points: list[dict[str, float]]):
    """The picture: gains over a random choice, with a standard error up and down, over the KL divergence."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    kl = [point["kl"] for point in points]
    for name, label in (("proxy", "proxy (chosen by)"), ("gold", "gold")):
        gain = [point[f"{name}_gain"] for point in points]
        errors = [point[f"{name}_gain_se"] for point in points]
        error = [each if math.isfinite(each) else 0.0 for each in errors]
        axes.errorbar(kl, gain, yerr=error, marker="o", capsize=2, label=label)
    for point in points:
        axes.annotate(
            f"{point['n']:g}", (point["kl"], 0), textcoords="offset points", xytext=(0, -12), ha="center", fontsize=7
        )
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set(xlabel="KL from the policy (nats); below: n", title="Best-of-n")
    axes.set_ylabel("gain over a random choice, in units of each\nreward (bars: one standard error)")
    axes.legend()
    return figure
