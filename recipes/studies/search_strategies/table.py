"""The study's table: means over prompts with intervals, and differences from sampling, prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_HEAD = (
    "| system | steering reward | held-out reward | held-out, less sampling | nats per token | tokens read | CPU s |\n"
    "| --- | --- | --- | --- | --- | --- | --- |\n"
)


def interval(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over prompts; the same draws for every system.

    Args:
        values: `(prompts,)`.
    """
    draws = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return float(low), float(high)


def results_table(measures: dict[str, dict[str, Any]], resamples: int, seed: int) -> tuple[list[dict], str]:
    """One row of figures for each system, and all of them as Markdown.

    Args:
        measures: by system `steering`, `held_out`, `nats`, `forward_tokens`, each `(prompts,)`; `seconds` a prompt.
            There is a system `sampling`.
    """
    rows, lines = [], []
    plain = np.array(measures["sampling"]["held_out"])
    for name, own in measures.items():
        row: dict[str, Any] = {"system": name, "seconds": own["seconds"]}
        values = {"steering": np.array(own["steering"]), "held_out": np.array(own["held_out"])}
        values["minus_sampling"] = values["held_out"] - plain
        for key, each in values.items():
            row |= {key: float(each.mean()), f"{key}_ci95": interval(each, resamples, seed)}
        row |= {key: float(np.mean(own[key])) for key in ("nats", "forward_tokens")}
        rows.append(row)
        shown = [f"{row[key]:.2f} ({_range(row[f'{key}_ci95'])})" for key in values]
        if name == "sampling":
            shown[2] = ""
        lines.append(
            f"| `{name}` | {' | '.join(shown)} | {row['nats']:.2f} | {row['forward_tokens']:,.0f} | "
            f"{row['seconds']:.1f} |\n"
        )
    return rows, _HEAD + "".join(lines)


def differences_table(
    measures: dict[str, dict[str, Any]], pairs: Sequence[Sequence[str]], resamples: int, seed: int
) -> str:
    """Differences of both rewards between systems, prompt by prompt, as Markdown.

    Args:
        measures: see `results_table`. pairs: names of two systems each, the first minus the second.
    """
    lines = ["\n| difference | steering reward | held-out reward |\n| --- | --- | --- |\n"]
    for one, other in pairs:
        shown = []
        for key in ("steering", "held_out"):
            gap = np.array(measures[one][key]) - np.array(measures[other][key])
            shown.append(f"{gap.mean():+.2f} ({_range(interval(gap, resamples, seed))})")
        lines.append(f"| `{one}` minus `{other}` | {' | '.join(shown)} |\n")
    return "".join(lines)


def _range(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.2f} to {bounds[1]:.2f}"
