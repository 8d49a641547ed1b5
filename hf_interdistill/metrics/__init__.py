"""Reward-model measures as modules of Hugging Face's `evaluate`, and for `compute_metrics` of a trainer.

Each is a folder that `evaluate.load` takes (`evaluate.load(metric_path("calibration"))`) and that can be pushed as it
is. Their inputs are `predictions` (rewards of chosen completions) and `references` (rewards of the rejected ones), so
that `evaluate.combine` works. The formulas are in `scoring/metrics.py` and `scoring/best_of_n.py`.
"""

from __future__ import annotations

from pathlib import Path

METRICS = ("pairwise_accuracy", "calibration", "length_bias", "best_of_n")


def metric_path(name: str) -> str:
    """The folder to give to `evaluate.load` and `evaluate.combine`.

    Raises:
        ValueError: no such metric.
    """
    if name not in METRICS:
        raise ValueError(f"There is no metric `{name}`; there are {', '.join(METRICS)}.")
    return str(Path(__file__).parent / name)
