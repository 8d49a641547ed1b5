"""Tables and plots of the runs: each arm against Bradley-Terry and against the uniform control, pair by pair."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from measures import decode_outcomes

from hf_interdistill.durable import write_whole

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_DRAWS = 10_000
Group = tuple[str, str, str]  # train, student, condition


def write_report(results: Sequence[dict], config: dict[str, Any], folder: Path) -> list[dict]:
    """Write `table.json`, `table.md` and the plots; returns the rows of the table."""
    runs = [record for record in results if not record["candidate"]]
    arms = [*config["arms"], *config["ensembles"]]
    table = [row for group in _groups(runs) for row in table_of(_of(runs, group), arms)]
    write_whole(folder / "table.json", json.dumps(table, indent=1) + "\n")
    write_whole(folder / "table.md", markdown(table, results))
    for group in _groups(runs):
        name = ".".join(group)
        rows = [row for row in table if _group(row) == group]
        _forest(rows, name, folder / f"differences.{name}.png")
        _masking(_of(runs, group), arms, config["diagnosis"]["fractions"], name, folder / f"masking.{name}.png")
    return table


def _group(record: dict) -> Group:
    return record["train"], record["student"], record["condition"]


def _groups(runs: Sequence[dict]) -> list[Group]:
    return list(dict.fromkeys(_group(record) for record in runs))


def _of(runs: Sequence[dict], group: Group) -> list[dict]:
    return [record for record in runs if _group(record) == group]


def outcomes(runs: Sequence[dict], arm: str) -> dict[str, dict[int, np.ndarray]]:
    """For each test (with the cue: `SET, cue SIDE`) and seed of an arm which pairs were right, `(pairs,)`."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for record in runs:
        if record["arm"] == arm:
            for name, test in _tests(record):
                found.setdefault(name, {})[record["seed"]] = decode_outcomes(test["right"], test["pairs"])
    return found


def _tests(record: dict) -> Iterator[tuple[str, dict]]:
    yield from record["tests"].items()
    for name, sides in record["cued"].items():
        yield from ((f"{name}, cue {side.replace('_', ' ')}", test) for side, test in sides.items())


def table_of(runs: Sequence[dict], arms: Sequence[str]) -> list[dict[str, Any]]:
    """One row an arm and test, with the paired differences to the two arms that all are held against."""
    found = {arm: outcomes(runs, arm) for arm in arms}
    rows = []
    for arm in (arm for arm in arms if found[arm]):
        mine = [record for record in runs if record["arm"] == arm]
        for test, seeds in found[arm].items():
            means = [float(right.mean()) for right in seeds.values()]
            rows.append(
                {
                    **dict(zip(("train", "student", "condition"), _group(mine[0]), strict=True)),
                    "arm": arm,
                    "test": test,
                    "pairs": len(next(iter(seeds.values()))),
                    "seeds": sorted(seeds),
                    "accuracy": float(np.mean(means)),
                    "spread_of_seeds": float(np.std(means, ddof=1)) if len(means) > 1 else None,
                    "against": {
                        other: paired_difference(seeds, found.get(other, {}).get(test, {}))
                        for other in ("bradley_terry", "uniform")
                        if other != arm
                    },
                    "hardware": sorted({record["hardware"] for record in mine}),
                }
            )
    return rows


def paired_difference(
    mine: dict[int, np.ndarray], theirs: dict[int, np.ndarray], draws: int = _DRAWS
) -> dict[str, Any] | None:
    """Accuracy of one arm minus another's over the seeds that both have, with a 95 % bootstrap interval.

    Pairs and seeds are drawn anew, independently of each other, the same for both arms. `None` without a common seed.
    """
    common = sorted(mine.keys() & theirs.keys())
    if not common:
        return None
    differences = np.stack([mine[seed] - theirs[seed] for seed in common])  # (seeds, pairs)
    seeds, pairs = differences.shape
    draw = np.random.default_rng(0)
    seed_weights = draw.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    pair_weights = draw.multinomial(pairs, np.full(pairs, 1 / pairs), draws) / pairs
    values = ((seed_weights @ differences) * pair_weights).sum(1)
    low, high = np.quantile(values, (0.025, 0.975))
    return {"value": float(differences.mean()), "low": float(low), "high": float(high), "seeds": len(common)}


def markdown(table: Sequence[dict], results: Sequence[dict]) -> str:
    """The tables for a reader, and what was chosen on the validation rows."""
    lines = [
        "Accuracy in %, mean over seeds; in brackets the difference to Bradley-Terry, then to the uniform control, in",
        "points, with 95 % bootstrap intervals over pairs and seeds, not corrected for their number. `*`: the",
        "interval leaves out 0. One seed gives an interval over pairs alone.",
        "",
    ]
    for group in dict.fromkeys(_group(row) for row in table):
        rows = [row for row in table if _group(row) == group]
        tests, arms = (list(dict.fromkeys(row[key] for row in rows)) for key in ("test", "arm"))
        cells = {(row["arm"], row["test"]): row for row in rows}
        lines += [f"### Trained on {group[0]}, student {group[1]}, condition {group[2]}", ""]
        lines += ["| arm | seeds | " + " | ".join(tests) + " | ran on |", "| --- " * (len(tests) + 3) + "|"]
        for arm in arms:
            first = next(row for row in rows if row["arm"] == arm)
            shown = [_cell(cells.get((arm, test))) for test in tests]
            ran = "; ".join(first["hardware"])
            lines.append(f"| {arm} | {len(first['seeds'])} | " + " | ".join(shown) + f" | {ran} |")
        lines.append("")
    return "\n".join([*lines, *_selection(results)]) + "\n"


def _cell(row: dict | None) -> str:
    if row is None:
        return ""
    return " ".join([f"{100 * row['accuracy']:.1f}", *map(_difference, row["against"].values())])


def _difference(found: dict | None) -> str:
    if found is None:
        return "(-)"
    star = "*" if found["low"] > 0 or found["high"] < 0 else ""
    return f"({100 * found['value']:+.1f}{star}: {100 * found['low']:+.1f} to {100 * found['high']:+.1f})"


def _selection(results: Sequence[dict]) -> list[str]:
    tried = [record for record in results if record["candidate"]]
    if not tried:
        return []
    lines = ["### Hyper-parameters, on validation rows", ""]
    lines += ["| student | arm | settings | seed | loss at the best scale | accuracy |", "| --- " * 6 + "|"]
    for record in tried:
        validation = record["validation"]
        numbers = f"{validation['scaled_nll']:.4f} | {validation['accuracy']:.3f}"
        lines.append(
            f"| {record['student']} | {record['arm']} | {record['candidate']} | {record['seed']} | {numbers} |"
        )
    return lines


def _forest(rows: Sequence[dict], name: str, path: Path) -> None:
    """Differences to Bradley-Terry, a panel a test."""
    rows = [row for row in rows if row["against"].get("bradley_terry")]
    if not rows:
        return
    tests, arms = (list(dict.fromkeys(row[key] for row in rows)) for key in ("test", "arm"))
    figure, axes = plt.subplots(1, len(tests), figsize=(2.4 * len(tests) + 1.5, 0.35 * len(arms) + 1.4), sharey=True)
    for axis, test in zip(np.atleast_1d(axes), tests, strict=True):
        for row in (row for row in rows if row["test"] == test):
            found, place = row["against"]["bradley_terry"], arms.index(row["arm"])
            axis.plot([100 * found["low"], 100 * found["high"]], [place, place], color="tab:blue")
            axis.plot([100 * found["value"]], [place], "o", color="tab:blue", markersize=4)
        axis.axvline(0, color="gray", linewidth=0.8)
        axis.set_title(test.replace(", ", "\n"), fontsize=8)
        axis.tick_params(labelsize=7)
    first = np.atleast_1d(axes)[0]
    first.set_yticks(range(len(arms)), arms)
    first.invert_yaxis()
    figure.suptitle(f"{name}: accuracy minus Bradley-Terry's, points", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _masking(runs: Sequence[dict], arms: Sequence[str], fractions: Sequence[float], name: str, path: Path) -> None:
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
    figure.savefig(path, dpi=110)
    plt.close(figure)
