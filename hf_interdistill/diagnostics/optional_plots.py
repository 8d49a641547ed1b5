"""Pictures of the measures that need more than a model and pairs."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from .drawing import chance_line, color, legend, new_figure
from .estimates import Estimate
from .noise import expected_loss

_GRAY = "#8a8f98"
_DOTTED = (0, (1, 2))


def draw_noise(shown) -> Figure:
    """Accuracy, and what is lost, over the share of flipped labels."""
    figure, axes = new_figure(3.7, 2)
    for number, each in shown:
        noise, shade = each.label_noise, color(number)
        x = [0.0, *(100 * share for share in noise.shares)]
        _curve(axes[0], x, [noise.clean, *noise.accuracy], shade)
        _curve(axes[1], x[1:], noise.loss, shade)
        lost = 100 * expected_loss(noise.clean.value, np.array(x) / 100)
        axes[0].plot(x, 100 * noise.clean.value - lost, color=shade, linewidth=1.3, linestyle=_DOTTED)
        axes[1].plot(x, lost, color=shade, linewidth=1.3, linestyle=_DOTTED)
        axes[1].fill_between(x, lost / 2, 0, color=shade, alpha=0.08, linewidth=0)
    chance_line(axes[0])
    axes[0].set_title("Accuracy")
    axes[1].set_title("Lost")
    axes[1].axhline(0, color=_GRAY, linewidth=1)
    axes[1].set_ylabel("points of accuracy lost\ndotted: every flip is repeated")
    for axis in axes:
        axis.set_xlabel("training labels flipped (%)")
        axis.set_xticks(sorted({0.0, *(100 * share for _, each in shown for share in each.label_noise.shares)}))
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


def _curve(axis, x, estimates: list[Estimate], shade: str, scale: float = 100) -> None:
    """A line with its intervals as a band."""
    value, low, high = (scale * np.array([getattr(e, part) for e in estimates]) for part in ("value", "low", "high"))
    axis.fill_between(x, low, high, color=shade, alpha=0.15, linewidth=0)
    axis.errorbar(
        x, value, yerr=np.maximum([value - low, high - value], 0), fmt="o-", color=shade, markersize=5, capsize=3
    )
