"""Plots of the measures that need more than a model and pairs."""

from __future__ import annotations

from collections.abc import Sequence

from ...utils.pages.charts import Axis, Curves, Plot, Point, Series, color_class
from ..measures.estimates import Estimate
from .points import CORRECT, Shown, near, point


def draw_noise(shown: Shown) -> list[Plot]:
    """Accuracy, and the share of the advantage over chance that is lost, by the share of flipped labels."""
    shares = sorted({0.0, *(share for _, each in shown for share in each.label_noise.shares)})
    largest = shares[-1]
    ticks = tuple((share, f"{100 * share:g}") for share in shares)
    width = Axis("training labels flipped (%)", -0.05 * largest, 1.05 * largest, ticks)
    accuracy, lost, lows = [], [], []
    for index, (number, each) in enumerate(shown):
        noise, color = each.label_noise, color_class(number)
        at = [near(share, index, len(shown), 0.02 * largest) for share in (0.0, *noise.shares)]
        accuracies = [noise.clean, *noise.accuracy]
        accuracy.append(_curve(color, at, accuracies))
        lows += [one.low for one in accuracies]
        if noise.clean.low > 0.5:  # of an advantage that may be none, no share can be told
            lost.append(_curve(color, at[1:], noise.lost_advantage, scale=100, has_band=False))
    repeated = Series(
        "color-ink", [Point(0.0, 0.0), Point(largest, 200 * largest)], "every flip repeated", line="dotted", mark=""
    )
    half = Series("color-muted", [Point(0.0, 0.0), Point(largest, 100 * largest)], "half", line="dashed", mark="")
    bounds = [bound for one in lost for each in one.drawn for bound in (each.low, each.high) if bound is not None]
    height = Axis.around("advantage over chance lost (%); good is below the dashed line", [*bounds, 200 * largest])
    return [
        Curves("Accuracy", width, Axis.percent(CORRECT, lows), tuple(accuracy), 0.5),
        Curves("Lost by flipped labels", width, height, (repeated, half, *lost), 0.0),
    ]


def draw_best_of_n(shown: Shown) -> list[Plot]:
    """Reward and gold score of the pick, over its KL divergence."""
    proxy = [_curve(color_class(number), each.best_of_n.kl, each.best_of_n.proxy_gain) for number, each in shown]
    gold = [_curve(color_class(number), each.best_of_n.kl, each.best_of_n.gold_gain) for number, each in shown]
    curves = [(number, each.best_of_n) for number, each in shown]
    is_shared = all(curve.oracle_gain == curves[0][1].oracle_gain for _, curve in curves)
    best = [
        Series(
            "color-ink" if is_shared else color_class(number),
            [Point(x, one.value) for x, one in zip(curve.kl, curve.oracle_gain, strict=True)],
            "" if index else "best possible",
            line="dotted",
            mark="",
        )
        for index, (number, curve) in enumerate(curves[:1] if is_shared else curves)
    ]
    longest = max((curve for _, curve in curves), key=lambda curve: curve.ns[-1])
    ticks = tuple((kl, str(n)) for kl, n in zip(longest.kl, longest.ns, strict=True))
    width = Axis("n, placed by the KL divergence of the pick from the sampled", 0.0, 1.03 * longest.kl[-1], ticks)
    plots: list[Plot] = []
    for title, unit, series in (
        ("Reward of its pick", "standard deviations", proxy),
        ("Gold score of its pick", "gold score", [*best, *gold]),
    ):
        values = [value for one in series for each in one.drawn for value in (each.y, each.low, each.high)]
        height = Axis.around(f"gain over a random choice ({unit})", [value for value in values if value is not None])
        plots.append(Curves(title, width, height, tuple(series), 0.0))
    return plots


def _curve(
    color: str, x: Sequence[float], estimates: Sequence[Estimate], scale: float = 1.0, has_band: bool = True
) -> Series:
    """A line with its intervals."""
    points = [point(at, estimate, scale) for at, estimate in zip(x, estimates, strict=True)]
    return Series(color, points, has_band=has_band)
