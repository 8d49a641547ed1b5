"""Pictures of the measures that need more than a model and pairs."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ..measures.estimates import Estimate
from .drawing import chance_line, color, legend, new_figure

_GRAY = "#8a8f98"
_DOTTED = (0, (1, 2))


def draw_noise(shown) -> Figure:
    """Accuracy, and the share of the advantage over chance that is lost, by the share of flipped labels."""
    figure, axes = new_figure(3.7, 2)
    shares = sorted({0.0, *(share for _, each in shown for share in each.label_noise.shares)})
    lowest = 50.0
    for index, (number, each) in enumerate(shown):
        noise, shade = each.label_noise, color(number)
        shift = (index - (len(shown) - 1) / 2) * 0.8
        accuracies = [noise.clean, *noise.accuracy]
        lowest = min(lowest, *(100 * estimate.low for estimate in accuracies))
        _curve(axes[0], shift + 100 * np.array((0.0, *noise.shares)), accuracies, shade)
        if noise.clean.low > 0.5:  # of an advantage that may be none, no share can be told
            _curve(axes[1], shift + 100 * np.array(noise.shares), noise.lost_advantage, shade, has_band=False)
    chance_line(axes[0], (min(40, lowest - 3), 103))
    repeated = np.array([0.0, 100 * max(shares) + 3])
    axes[1].plot(repeated, 2 * repeated, color="#22262c", linewidth=1.3, linestyle=_DOTTED)
    axes[1].annotate(
        "every flip repeated", (100 * max(shares), 200 * max(shares)), textcoords="offset points", xytext=(-6, 2),
        ha="right", fontsize=8.5, color="#3b4048",
    )  # fmt: skip
    axes[1].fill_between(repeated, repeated, 0, color="#1a7f4e", alpha=0.1, linewidth=0)
    axes[1].axhline(0, color=_GRAY, linewidth=1)
    axes[0].set_title("Accuracy")
    axes[1].set_title("Lost by flipped labels")
    axes[1].set_ylabel("advantage over chance lost (%)\nshaded: less than half of the flips")
    for axis in axes:
        axis.set_xlabel("training labels flipped (%)")
        axis.set_xticks([100 * share for share in shares])
        axis.set_xlim(-3, 100 * max(shares) + 3)
    legend(figure, axes[0], shown)
    return figure


def draw_best_of_n(shown) -> Figure:
    """Reward and gold score of the pick, over its KL divergence."""
    figure, axes = new_figure(4.1, 2)
    for number, each in shown:
        curve, shade = each.best_of_n, color(number)
        _curve(axes[0], curve.kl, curve.proxy_gain, shade, scale=1)
        _curve(axes[1], curve.kl, curve.gold_gain, shade, scale=1)
    oracles = [(each.best_of_n, number) for number, each in shown]
    is_shared = all(curve.oracle_gain == oracles[0][0].oracle_gain for curve, _ in oracles)
    for curve, number in oracles[:1] if is_shared else oracles:
        values = [estimate.value for estimate in curve.oracle_gain]
        shade = "#22262c" if is_shared else color(number)
        axes[1].plot(curve.kl, values, color=shade, linewidth=1.3, linestyle=_DOTTED)
        axes[1].annotate(
            "best possible", (curve.kl[-1], values[-1]), textcoords="offset points", xytext=(0, 5), ha="right",
            fontsize=8.5, color="#3b4048",
        )  # fmt: skip
    longest = max((each.best_of_n for _, each in shown), key=lambda curve: curve.ns[-1])
    for axis, title, label in (
        (axes[0], "Reward of its pick", "gain over a random choice\n(standard deviations)"),
        (axes[1], "Gold score of its pick", "gain over a random choice\n(gold score)"),
    ):
        axis.axhline(0, color=_GRAY, linewidth=1)
        axis.set_title(title, pad=26)
        axis.set_ylabel(label)
        axis.set_xlabel("KL divergence from the sampled (nats)")
        axis.margins(y=0.12)
        top = axis.secondary_xaxis("top")
        top.set_xticks(longest.kl, [str(n) for n in longest.ns])
        top.tick_params(labelsize=8.5, length=2)
        top.set_xlabel("n", fontsize=8.5, labelpad=2, loc="right")
        top.spines["top"].set_visible(False)
    legend(figure, axes[0], shown)
    return figure


def _curve(axis, x, estimates: list[Estimate], shade: str, scale: float = 100, has_band: bool = True) -> None:
    """A line with its intervals."""
    value, low, high = (scale * np.array([getattr(e, part) for e in estimates]) for part in ("value", "low", "high"))
    if has_band:
        axis.fill_between(x, low, high, color=shade, alpha=0.15, linewidth=0)
    axis.errorbar(
        x, value, yerr=np.maximum([value - low, high - value], 0), fmt="o-", color=shade, markersize=5, capsize=3
    )
