"""From estimates to what plots draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...utils.pages.charts import Interval, Point, color_class
from ..measures.estimates import Estimate

Shown = Sequence[tuple[int, Any]]  # diagnoses with their places on the page, which give colors
CORRECT = "pairs ranked correctly (%), dashed: chance"


def point(x: float, estimate: Estimate, scale: float = 1.0, note: str = "") -> Point:
    """An estimate at a place, with its interval."""
    value, low, high = (scale * each for each in (estimate.value, estimate.low, estimate.high))
    if not math.isfinite(low):
        return Point(x, value, note=note)
    numbers = f"{value:.3g} ({low:.3g} to {high:.3g})"
    return Point(x, value, low, high, f"{numbers}; {note}" if note else numbers)


def interval(number: int, estimate: Estimate, is_share: bool = True, is_hollow: bool = False) -> Interval:
    """An estimate as a row of a model; shares are written in percent."""
    return Interval(
        color_class(number), estimate.value, estimate.low, estimate.high,
        _percent(estimate) if is_share else _number(estimate), is_hollow=is_hollow,
    )  # fmt: skip


def near(x: float, index: int, count: int, step: float) -> float:
    """Where the point of the model `index` of `count` is, so that points of one place lie beside each other."""
    return x + (index - (count - 1) / 2) * step


def short(name: str) -> str:
    """A name that fits on a line of a plot."""
    return name if len(name) <= 36 else "…" + name[-35:]


def _percent(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "not defined"
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.0f} to {100 * estimate.high:.0f})"


def _number(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "not defined"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
