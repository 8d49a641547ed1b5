"""The study's figures: accuracy of each model on each test set, and its difference from the baseline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hf_interdistill.comparison.config import BASELINE
from hf_interdistill.comparison.data import prompt_keys
from hf_interdistill.comparison.statistics import mean_outcome, paired_difference, right
from hf_interdistill.utils.atomic_io import write_atomically


def summarize(
    runs: Path,
    arms: Sequence[str],
    seeds: Sequence[int],
    tests: dict[str, int],
    rows: Sequence[dict[str, Any]],
    resamples: int,
) -> dict[str, dict[str, Any]]:
    """For each arm and test the accuracy and, for all arms but the baseline, the paired difference from it.

    Pairs of one prompt are no independent ones, so they count as one, by their mean.

    Args:
        runs: folder of a comparison's runs, `ARM/seed-N`, each with the rewards of all rows.
        arms: the baseline among them. tests: pairs of each test, in the order of the rows.
        rows: preferences that were scored. resamples: of the bootstrap over prompts and seeds.

    Returns:
        By arm and test `accuracy` and `difference`: value, low, high, prompts, seeds.
    """
    margins = {arm: {seed: read_margins(runs / arm / f"seed-{seed}") for seed in seeds} for arm in arms}
    found: dict[str, dict[str, Any]] = {arm: {} for arm in arms}
    for name, part in _parts(tests).items():
        keys = prompt_keys(rows[part], name)
        outcomes = {
            arm: {seed: mean_by(right(each[part]), keys) for seed, each in own.items()} for arm, own in margins.items()
        }
        for arm in arms:
            own = {"accuracy": astuple(mean_outcome(outcomes[arm], resamples))}
            if arm != BASELINE:
                own["difference"] = astuple(paired_difference(outcomes[arm], outcomes[BASELINE], resamples))
            found[arm][name] = own
    return found


def accuracy_by_test(margins: np.ndarray, tests: dict[str, int], rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """A model's accuracy on each test, pairs of one prompt counted as one: see `summarize`."""
    return {
        name: float(mean_by(right(margins[part]), prompt_keys(rows[part], name)).mean())
        for name, part in _parts(tests).items()
    }


def _parts(tests: dict[str, int]) -> dict[str, slice]:
    """Where each test lies in the rows."""
    ends = np.cumsum(list(tests.values()))
    return {name: slice(int(end) - count, int(end)) for (name, count), end in zip(tests.items(), ends, strict=True)}


def mean_by(values: np.ndarray, keys: Sequence[str]) -> np.ndarray:
    """The mean of the values of each key, `(keys,)`, in the order in which keys come first."""
    return pd.Series(values).groupby(keys, sort=False).mean().to_numpy()


def read_margins(folder: Path) -> np.ndarray:
    """Chosen minus rejected of all rows that a comparison has scored with a run's model, `(rows,)`."""
    (path,) = folder.glob("scores-*.jsonl")
    records = sorted((json.loads(line) for line in path.open(encoding="utf-8")), key=lambda record: record["id"])
    return np.array([record["rewards"][0] - record["rewards"][1] for record in records])


def write_tables(path: Path, groups: dict[str, dict[str, Any]]) -> None:
    """One table for each group, and one for what reads the prompt, as Markdown.

    Args:
        groups: figures by group, see `Study.run`.
    """
    parts = [_group(name, figures) for name, figures in groups.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "\n".join([*parts, _context(groups)]))


def _group(name: str, figures: dict[str, Any]) -> str:
    tests = figures["rows"]["tests"]
    baseline = {test: own["accuracy"] for test, own in figures["tests"][BASELINE].items()}
    seeds = next(iter(baseline.values()))[4]
    heads = [f"{test}, {baseline[test][3]} prompts" for test in tests]
    lines = [
        f"### {name}\n",
        f"{figures['rows']['train']:,} training pairs, {seeds} seeds.\n",
        f"| model | explained share | {' | '.join(heads)} |",
        "| --- " * (len(tests) + 2) + "|",
    ]
    for teacher, own in figures["teachers"].items():
        shown = [f"{100 * own['tests'][test]:.1f}" for test in tests]
        lines.append(f"| teacher `{teacher}` | | {' | '.join(shown)} |")
    for arm, own in figures["tests"].items():
        explained = figures["models"][arm]
        share = "no map" if explained is None else f"{explained:.2f}"
        lines.append(f"| `{arm}` | {share} | {' | '.join(_accuracy(own[test]) for test in tests)} |")
    return "\n".join(lines) + "\n"


def _accuracy(own: dict[str, Any]) -> str:
    text = f"{100 * own['accuracy'][0]:.1f}"
    if "difference" in own:
        value, low, high = (100 * each for each in own["difference"][:3])
        mark = "*" if low > 0 or high < 0 else ""
        text += f" ({value:+.1f}{mark}: {low:+.1f} to {high:+.1f})"
    return text


def _context(groups: dict[str, dict[str, Any]]) -> str:
    rows = [(name, arm, own) for name, group in groups.items() for arm, own in group["context"].items()]
    if not rows:
        return ""
    measures = list(rows[0][2])
    lines = [
        "### Is the prompt read?\n",
        f"| group | model | {' | '.join(measures)} |",
        "| --- " * (len(measures) + 2) + "|",
    ]
    for name, arm, own in rows:
        shown = [f"{100 * value:.0f} ({100 * low:.0f} to {100 * high:.0f})" for value, low, high in own.values()]
        lines.append(f"| {name} | `{arm}` | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"
