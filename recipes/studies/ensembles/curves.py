"""The figures: what best-of-n picks by each kind of reward, and how sure that is over prompts and members."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hf_interdistill.scoring.aggregation import Aggregation
from hf_interdistill.scoring.best_of_n import best_of_n_kl, best_of_n_scores, doubling

ARMS = ("single", "mean", "worst", "uncertainty")


def figures(rewards: list, gold: list, config: dict[str, Any], accuracy: list[float]) -> dict[str, Any]:
    """Curves of each arm over n, and how much gold is lost behind the peak.

    Gains are over a random choice, in standard deviations of the reward among all test texts. Every resample draws the
    members of an ensemble, one of which is the single member, and the prompts. The estimates are means over the draws
    of members, with all prompts; the intervals hold 95 % of the resamples.

    Members are drawn without replacement, which understates the spread of ensembles that is due to members: with `k`
    of `m` it is about `sqrt(1 - k / m)` of that of ensembles with new members.

    Args:
        rewards: `(members, prompts, samples)`, standardized. gold: `(prompts, samples)`.
        config: `ensemble_size`, `uncertainty_weight`, `largest_drop`, `resamples`, `seed`.
        accuracy: of each member against gold, on two samples of a prompt.
    """
    rewards, gold = np.asarray(rewards), np.asarray(gold)
    rng = np.random.default_rng(config["seed"])
    prompts, samples = gold.shape
    ns = doubling(samples)
    oracle = _gains(gold, gold, ns)
    whole: dict[str, list] = {name: [] for name in _names()}
    drawn: dict[str, list] = {name: [] for name in _names()}
    for _ in range(config["resamples"]):
        members = rng.choice(len(rewards), config["ensemble_size"], replace=False)
        rows = rng.integers(prompts, size=prompts)
        for arm in ARMS:
            proxy = _proxy(arm, rewards[members], config["uncertainty_weight"])
            for kind, score in (("proxy", proxy), ("gold", gold)):
                gains = _gains(proxy, score, ns)
                whole[f"{arm} {kind}"].append(gains.mean(0))
                drawn[f"{arm} {kind}"].append(gains[rows].mean(0))
    arms = {arm: _arm(arm, whole, drawn, config["largest_drop"]) for arm in ARMS}
    return {
        "ns": ns,
        "kl": [round(best_of_n_kl(n), 3) for n in ns],
        "prompts": prompts,
        "members": len(rewards),
        "accuracy": [round(value, 3) for value in accuracy],
        "oracle": _rounded(oracle.mean(0)),
        "arms": arms,
    }


def _names() -> list[str]:
    return [f"{arm} {kind}" for arm in ARMS for kind in ("proxy", "gold")]


def _proxy(arm: str, rewards: np.ndarray, weight: float) -> np.ndarray:
    """The reward `(prompts, samples)` that an arm chooses by, of `(members, prompts, samples)`."""
    if arm == "single":
        return rewards[0]
    rule = Aggregation(arm, weight if arm == "uncertainty" else None)
    return rule(torch.from_numpy(rewards)).numpy()


def _gains(proxy: np.ndarray, score: np.ndarray, ns: list[int]) -> np.ndarray:
    """`(prompts, ns)`: expected score of the pick minus that of a random choice, in standard deviations."""
    picked = np.stack([best_of_n_scores(proxy, score, n) for n in ns], axis=1)
    return (picked - picked[:, :1]) / score.std()


def _arm(arm: str, whole: dict[str, list], drawn: dict[str, list], largest_drop: float) -> dict[str, Any]:
    gold, gold_drawn = np.array(whole[f"{arm} gold"]), np.array(drawn[f"{arm} gold"])
    single, single_drawn = np.array(whole["single gold"]), np.array(drawn["single gold"])
    drops, drops_drawn = _drops(gold), _drops(gold_drawn)
    peaks = gold_drawn.max(1)
    return {
        "proxy": _rounded(np.mean(whole[f"{arm} proxy"], axis=0)),
        "proxy_ci": _interval(np.array(drawn[f"{arm} proxy"])),
        "gold": _rounded(gold.mean(0)),
        "gold_ci": _interval(gold_drawn),
        "drop": _rounded(_drops(gold.mean(0)[None])[0]),
        "drop_ci": _interval(drops_drawn),
        "mean_drop": _rounded(drops.mean()),
        "over_optimized": _rounded(np.mean(drops_drawn > largest_drop * peaks)),
        "minus_single": _rounded((gold - single)[:, -1].mean()),
        "minus_single_ci": _interval((gold_drawn - single_drawn)[:, -1]),
    }


def _drops(gold: np.ndarray) -> np.ndarray:
    """Of curves `(draws, ns)`: gold at the peak minus gold at the largest n."""
    return gold.max(1) - gold[:, -1]


def _interval(values: np.ndarray) -> list:
    return _rounded(np.percentile(values, [2.5, 97.5], axis=0))


def _rounded(values: Any) -> Any:
    return np.round(values, 3).tolist()


def tables(result: dict[str, Any]) -> str:
    """The arms side by side, and their curves, in Markdown."""
    arms, largest = result["arms"], result["ns"][-1]
    lines = [
        "# Curves of the study of ensembles",
        "",
        f"Best of {largest}, {result['prompts']} prompts, {result['members']} members that agree with gold in "
        f"{min(result['accuracy']):.3f} to {max(result['accuracy']):.3f} of held-out pairs. The best possible choice "
        f"gains {result['oracle'][-1]:.2f}.",
        "",
        "| arm | proxy gain | gold gain | minus single | drop from the peak | over-optimized |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for arm, row in arms.items():
        ends = [row["gold_ci"][0][-1], row["gold_ci"][1][-1]]
        cells = [
            f"`{arm}`",
            f"{row['proxy'][-1]:.2f}",
            f"{row['gold'][-1]:.2f} ({_span(ends)})",
            f"{row['minus_single']:+.2f} ({_span(row['minus_single_ci'], '+')})",
            f"{row['mean_drop']:.2f} ({_span(row['drop_ci'])})",
            f"{100 * row['over_optimized']:.0f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for kind in ("gold", "proxy"):
        columns = [f"`{arm}`" for arm in arms]
        lines += ["", f"## {kind.capitalize()} gain", "", f"| n | KL | {' | '.join(columns)} |"]
        lines.append(f"| {' | '.join(['---'] * (2 + len(arms)))} |")
        for place, (n, kl) in enumerate(zip(result["ns"], result["kl"], strict=True)):
            cells = [
                f"{row[kind][place]:.2f} ({_span([ends[place] for ends in row[f'{kind}_ci']])})"
                for row in arms.values()
            ]
            lines.append(f"| {n} | {kl:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _span(ends: list[float], sign: str = "") -> str:
    low, high = (f"{value:{sign}.2f}" for value in ends)
    return f"{low} to {high}"
