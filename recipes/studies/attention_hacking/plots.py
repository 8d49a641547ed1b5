"""The pictures of the study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from hf_interdistill.utils.pictures import save_small_png


def draw_differences(rows: Sequence[dict], name: str, path: Path) -> None:
    """Differences to Bradley-Terry, a panel a test; in brackets the seeds."""
    rows = [row for row in rows if row["against"].get("bradley_terry")]
    if not rows:
        return
    tests, arms = (list(dict.fromkeys(row[key] for row in rows)) for key in ("test_set", "arm"))
    across = min(4, len(tests))
    down = -(-len(tests) // across)
    size = (2.6 * across + 1.5, (0.24 * len(arms) + 0.8) * down + 0.4)
    figure, axes = plt.subplots(down, across, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis in axes.flat[len(tests) :]:
        axis.set_axis_off()
    for axis, test in zip(axes.flat, tests, strict=False):
        for row in (row for row in rows if row["test_set"] == test):
            found, place = row["against"]["bradley_terry"], arms.index(row["arm"])
            is_sure = found["low"] > 0 or found["high"] < 0
            color = "tab:blue" if is_sure else "tab:gray"
            axis.plot([100 * found["low"], 100 * found["high"]], [place, place], color=color)
            axis.plot([100 * found["value"]], [place], "o", color=color, markersize=4)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(test, fontsize=8)
        axis.tick_params(labelsize=7)
    seeds = {row["arm"]: row["against"]["bradley_terry"]["seeds"] for row in rows}
    axes[0, 0].set_yticks(range(len(arms)), [f"{arm} ({seeds[arm]})" for arm in arms])
    axes[0, 0].invert_yaxis()
    figure.suptitle(f"{name}: accuracy minus Bradley-Terry's, points (blue: the interval leaves out 0)", fontsize=9)
    save_small_png(figure, path, dpi=80, colors=16)
    plt.close(figure)


def draw_masking(runs: Sequence[dict], arms: Sequence[str], fractions: Sequence[float], name: str, path: Path) -> None:
    """Accuracy with the first part of prompt and response taken away, mean over seeds."""
    figure, axis = plt.subplots(figsize=(6, 4))
    for arm in arms:
        curves = [
            [record["diagnosis"]["whole"], *record["diagnosis"]["masked_first"]]
            for record in runs
            if record["arm"] == arm and record["diagnosis"]
        ]
        if curves:
            mean = np.nanmean(np.array(curves, dtype=float), 0)
            axis.plot([0, *fractions], 100 * mean, marker="o", markersize=3, label=f"{arm} ({len(curves)})")
    axis.set_xlabel("part of prompt and response masked, from the start")
    axis.set_ylabel("accuracy in %, mean over seeds (their number)")
    axis.set_title(name, fontsize=9)
    axis.legend(fontsize=6)
    figure.tight_layout()
    save_small_png(figure, path)
    plt.close(figure)
