"""Tables and plots of the runs: each arm against Bradley-Terry, the controls and label smoothing, pair by pair."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from measures import decode_outcomes

from hf_interdistill.durable import write_whole

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_DRAWS = 10_000
_REFERENCES = ("bradley_terry", "uniform", "shuffled", "label_smoothing")
Group = tuple[str, str, str]  # train, student, condition


def write_report(results: Sequence[dict], config: dict[str, Any], folder: Path) -> list[dict]:
    """Write `results.json` (the rows of the table), `table.md` and the plots; returns the rows.

    Args:
        results: the records of the runs.
    """
    runs = [record for record in results if not record["candidate"]]
    arms = [*config["arms"], *config["ensembles"]]
    table = [row for group in _groups(runs) for row in table_of(_of(runs, group), arms, config["means"])]
    write_whole(folder / "results.json", json.dumps(table, indent=1) + "\n")
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


def losses(runs: Sequence[dict], arm: str) -> dict[str, dict[int, float]]:
    """For each test and seed of an arm the Bradley-Terry loss in nats."""
    found: dict[str, dict[int, float]] = {}
    for record in runs:
        if record["arm"] == arm:
            for name, test in _tests(record):
                found.setdefault(name, {})[record["seed"]] = test["nll"]
    return found


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


def table_of(runs: Sequence[dict], arms: Sequence[str], means: dict[str, list[str]]) -> list[dict[str, Any]]:
    """One row an arm and test, with the paired differences to the arms that all are held against.

    Args:
        means: names for the means of some of the tests.
    """
    found, loss = ({arm: measure(runs, arm) for arm in arms} for measure in (outcomes, losses))
    return [
        {
            **dict(zip(("train", "student", "condition"), _group(runs[0]), strict=True)),
            **_row(arm, test, parts, found, loss),
            "hardware": sorted({record["hardware"] for record in runs if record["arm"] == arm}),
        }
        for arm in arms
        if found[arm]
        for test, parts in _parts(found[arm], means).items()
    ]


def _parts(tests: Iterable[str], means: dict[str, list[str]]) -> dict[str, list[str]]:
    """For each test what it is the mean of: itself, or those that are named."""
    return {**means, **{test: [test] for test in tests}}


def _row(arm: str, test: str, parts: list[str], found: dict[str, Any], loss: dict[str, Any]) -> dict[str, Any]:
    def of(values: dict[str, Any], other: str) -> list[dict]:
        return [values.get(other, {}).get(part, {}) for part in parts]

    seeds = sorted(set.intersection(*(set(part) for part in of(found, arm))))
    means = [np.mean([part[seed].mean() for part in of(found, arm)]) for seed in seeds]
    nothing = [{seed: np.zeros(len(part[seed])) for seed in seeds} for part in of(found, arm)]
    against = {other: paired_difference(of(found, arm), of(found, other)) for other in _REFERENCES}
    others = [other for other in _REFERENCES if other != arm]
    delta = against["bradley_terry"]
    return {
        "arm": arm,
        "test_set": test,
        "metric": "accuracy",
        "pairs": sum(len(part[seeds[0]]) for part in of(found, arm)),
        "seeds": len(seeds),
        "mean": float(np.mean(means)),
        "ci95": _interval(paired_difference(of(found, arm), nothing)),
        "delta_vs_bradley_terry": delta and delta["value"],
        "delta_ci95": delta and _interval(delta),
        "spread_of_seeds": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "against": {other: against[other] for other in others},
        "loss": float(np.mean([part[seed] for part in of(loss, arm) for seed in seeds])),
        "loss_against": {other: loss_difference(of(loss, arm), of(loss, other)) for other in others},
    }


def _interval(difference: dict[str, Any]) -> list[float]:
    return [difference["low"], difference["high"]]


def paired_difference(
    mine: Sequence[dict[int, np.ndarray]], theirs: Sequence[dict[int, np.ndarray]], draws: int = _DRAWS
) -> dict[str, Any] | None:
    """Accuracy of one arm minus another's over the seeds that both have, with a 95 % bootstrap interval.

    Pairs and seeds are drawn anew, independently of each other, the same for both arms. `None` without a common seed.

    Args:
        mine, theirs: for each test which pairs were right, by seed, `(pairs,)`; of several tests the mean is taken,
            for which the same seeds are drawn.
    """
    common = _common(mine, theirs)
    if not common:
        return None
    values, drawn = [], np.zeros(draws)
    for number, (own, other) in enumerate(zip(mine, theirs, strict=True)):
        differences = np.stack([own[seed] - other[seed] for seed in common])  # (seeds, pairs)
        of_seeds, of_pairs = _weights(len(common), 0, draws), _weights(differences.shape[1], 1 + number, draws)
        drawn += ((of_seeds @ differences) * of_pairs).sum(1) / len(mine)
        values.append(differences.mean())
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"value": float(np.mean(values)), "low": float(low), "high": float(high), "seeds": len(common)}


def _common(mine: Sequence[dict[int, Any]], theirs: Sequence[dict[int, Any]]) -> list[int]:
    """The seeds that all tests of both arms have."""
    return sorted(set.intersection(*(set(test) for test in (*mine, *theirs))))


@lru_cache(maxsize=16)
def _weights(count: int, stream: int, draws: int) -> np.ndarray:
    """How often each of `count` things is drawn, as parts of the whole: `(draws, count)`."""
    return np.random.default_rng(stream).multinomial(count, np.full(count, 1 / count), draws) / count


def loss_difference(mine: Sequence[dict[int, float]], theirs: Sequence[dict[int, float]]) -> dict[str, Any] | None:
    """One arm's loss minus another's in nats, over the common seeds, and in how many of them it is the lower.

    Args:
        mine, theirs: for each test the loss by seed; the mean over several tests is taken.
    """
    common = _common(mine, theirs)
    if not common:
        return None
    differences = [
        np.mean([own[seed] - other[seed] for own, other in zip(mine, theirs, strict=True)]) for seed in common
    ]
    lower = sum(bool(difference < 0) for difference in differences)
    return {"value": float(np.mean(differences)), "lower": lower, "seeds": len(common)}


def markdown(table: Sequence[dict], results: Sequence[dict]) -> str:
    """The tables for a reader, and what was chosen on the validation rows."""
    lines = [
        "Accuracy in %, mean over seeds; in brackets the difference in points, with 95 % bootstrap intervals over",
        "pairs and seeds, not corrected for their number. `*`: the interval leaves out 0. One seed gives an interval",
        "over pairs alone. Loss: Bradley-Terry's in nats; in brackets the mean difference to `bradley_terry`, and the",
        "seeds in which it is lower. Means weigh each set alike.",
        "",
    ]
    for group in dict.fromkeys(_group(row) for row in table):
        rows = [row for row in table if _group(row) == group]
        lines += [f"## Trained on {group[0]}, student {group[1]}, condition {group[2]}", ""]
        lines += _lines_of("Accuracy, and against `bradley_terry`", rows, lambda row: _cell(row, "bradley_terry"))
        for other in _REFERENCES[1:]:
            others = [row for row in rows if other in row["against"]]
            lines += _lines_of(f"Against `{other}`", others, lambda row, other=other: _cell(row, other))
        lines += _lines_of("Loss, and against `bradley_terry`", rows, _loss_cell)
        lines += _diagnosis(_of(results, group))
        lines += ["Ran on: " + "; ".join(sorted({name for row in rows for name in row["hardware"]})) + ".", ""]
    return "\n".join([*lines, *_selection(results)]).rstrip() + "\n"


def _lines_of(title: str, rows: Sequence[dict], show: Callable[[dict], str]) -> list[str]:
    """A table with an arm a line and a test a column."""
    tests, arms = (list(dict.fromkeys(row[key] for row in rows)) for key in ("test_set", "arm"))
    cells = {(row["arm"], row["test_set"]): row for row in rows}
    lines = [f"### {title}", "", "| arm | seeds | " + " | ".join(tests) + " |", "| --- " * (len(tests) + 2) + "|"]
    for arm in arms:
        seeds = next(row for row in rows if row["arm"] == arm)["seeds"]
        shown = [show(cells[arm, test]) if (arm, test) in cells else "" for test in tests]
        lines.append(f"| {arm} | {seeds} | " + " | ".join(shown) + " |")
    return [*lines, ""]


def _cell(row: dict, other: str) -> str:
    accuracy = f"{100 * row['mean']:.1f}"
    if other == row["arm"]:
        return accuracy
    found = row["against"][other]
    if found is None:
        return f"{accuracy} (-)"
    star = "*" if found["low"] > 0 or found["high"] < 0 else ""
    interval = f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}"
    return f"{accuracy} ({100 * found['value']:+.1f}{star}: {interval})"


def _loss_cell(row: dict) -> str:
    found = row["loss_against"].get("bradley_terry")
    against = f" ({found['value']:+.3f}: {found['lower']} of {found['seeds']})" if found else ""
    return f"{row['loss']:.3f}{against}"


_MEASURES = {  # heading: where a record's diagnosis has it, several of which the mean is taken; factor
    "accuracy, %": ([("whole",)], 100),
    "with the last fifth alone, %": ([("masked_first", -1)], 100),
    "attention to the first fifth, %": ([("stages_right", 0), ("stages_wrong", 0)], 100),
    "attention to the last fifth, %": ([("stages_right", -1), ("stages_wrong", -1)], 100),
    "the longer one is the worse, %": ([("longer_is_worse",)], 100),
    "gain by the cue, standard deviations": ([("cue_gain",)], 1),
}


def _diagnosis(runs: Sequence[dict]) -> list[str]:
    """What `diagnose` says of the reward models of each arm, mean over seeds."""
    found: dict[str, list[dict]] = {}
    for record in runs:
        if record["diagnosis"] and "stages_right" in record["diagnosis"]:
            found.setdefault(record["arm"], []).append(record["diagnosis"])
    if not found:
        return []
    pairs = sorted({each["pairs"] for arm in found.values() for each in arm})
    lines = [f"### What `diagnose` says, {' or '.join(map(str, pairs))} pairs a seed", ""]
    lines += ["| arm | seeds | " + " | ".join(_MEASURES) + " |", "| --- " * (len(_MEASURES) + 2) + "|"]
    for arm, each in found.items():
        means = [factor * _mean_at(each, places) for places, factor in _MEASURES.values()]
        lines.append(f"| {arm} | {len(each)} | " + " | ".join(f"{mean:.3g}" for mean in means) + " |")
    return [*lines, ""]


def _mean_at(records: Sequence[dict], places: Sequence[tuple]) -> float:
    """Mean of what is at these places; there is nothing where all pairs were right, or all wrong."""
    values = [reduce(getitem, place, record) for record in records for place in places]
    return float(np.mean([value for value in values if value is not None] or [np.nan]))


def _selection(results: Sequence[dict]) -> list[str]:
    tried = [record for record in results if record["candidate"]]
    if not tried:
        return []
    lines = ["## Hyper-parameters, on validation rows", ""]
    lines += ["| student | arm | settings | seed | loss at the best scale | accuracy |", "| --- " * 6 + "|"]
    for record in tried:
        validation = record["validation"]
        numbers = f"{validation['scaled_nll']:.4f} | {validation['accuracy']:.3f}"
        lines.append(
            f"| {record['student']} | {record['arm']} | {record['candidate']} | {record['seed']} | {numbers} |"
        )
    return lines


def _forest(rows: Sequence[dict], name: str, path: Path) -> None:
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
