"""The tables of the study for a reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import getitem

import numpy as np
from comparison import REFERENCES, group_of, of_group

_LEGEND = [
    "Accuracy in %, mean over seeds; in brackets the difference in points, with 95 % bootstrap intervals over",
    "pairs and seeds, not corrected for their number. `*`: the interval leaves out 0. One seed gives an interval",
    "over pairs alone. Means weigh each set alike.",
]
_SCOPES = ("interaction_joint", "interaction_intra", "interaction_inter")
_LOSS_LEGEND = [
    "Loss: Bradley-Terry's in nats; in brackets the mean difference to `bradley_terry`, and the",
    "seeds in which it is lower.",
]


def short_tables(table: Sequence[dict], results: Sequence[dict]) -> str:
    """The means of the tests, the distilled arms against the controls, and what was chosen on the validation rows."""
    return _text([*_LEGEND, "", *summary(table), *_against_controls(table), *learnt(results), *_selection(results)])


def long_tables(table: Sequence[dict], results: Sequence[dict]) -> str:
    """Every test of every arm, against each reference, with losses and what `diagnose` says."""
    lines = [*_LEGEND, *_LOSS_LEGEND, ""]
    for group in dict.fromkeys(group_of(row) for row in table):
        rows = [row for row in table if group_of(row) == group]
        lines += [f"## Trained on {group[0]}, student {group[1]}, condition {group[2]}", ""]
        lines += _lines_of("Accuracy, and against `bradley_terry`", rows, lambda row: _cell(row, "bradley_terry"))
        for other in REFERENCES[1:]:
            others = [row for row in rows if other in row["against"]]
            lines += _lines_of(f"Against `{other}`", others, lambda row, other=other: _cell(row, other))
        lines += _lines_of("Loss, and against `bradley_terry`", rows, _loss_cell)
        lines += _diagnosis(of_group(results, group))
        lines += ["Ran on: " + "; ".join(sorted({name for row in rows for name in row["hardware"]})) + ".", ""]
    return _text(lines)


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


def summary(table: Sequence[dict]) -> list[str]:
    """For each training file and student the means of the tests, and the trained set with a cue on the rejected."""
    lines: list[str] = []
    for train, student in dict.fromkeys(group_of(row)[:2] for row in table):
        rows = [row for row in table if group_of(row)[:2] == (train, student)]
        names = list(dict.fromkeys(row["test_set"] for row in rows))
        tests = [name for name in names if name.startswith("mean of") or name.endswith("cue on rejected")]
        lines += [f"## In short: trained on {train}, student {student}", ""]
        lines += ["| condition | arm | seeds | " + " | ".join(tests) + " |", "| --- " * (len(tests) + 3) + "|"]
        for condition, arm in dict.fromkeys((row["condition"], row["arm"]) for row in rows):
            own = {row["test_set"]: row for row in rows if (row["condition"], row["arm"]) == (condition, arm)}
            shown = [_cell(own[test], "bradley_terry") if test in own else "" for test in tests]
            seeds = next(iter(own.values()))["seeds"]
            lines.append(f"| {condition} | `{arm}` | {seeds} | " + " | ".join(shown) + " |")
        lines.append("")
    return lines


def _against_controls(table: Sequence[dict]) -> list[str]:
    """The means of the three scopes against the maps that teach nothing, and against label smoothing."""
    others = REFERENCES[1:]
    lines = []
    for train, student in dict.fromkeys(group_of(row)[:2] for row in table):
        lines += [f"## Distilled arms minus controls, in points: trained on {train}, student {student}", ""]
        lines += ["| condition | arm | test | " + " | ".join(f"`{other}`" for other in others) + " |"]
        lines += ["| --- " * (len(others) + 3) + "|"]
        for row in (row for row in table if group_of(row)[:2] == (train, student)):
            found = [row["against"].get(other) for other in others]
            if row["test_set"].startswith("mean of") and row["arm"] in _SCOPES and any(found):
                shown = " | ".join(_difference(each) if each else "" for each in found)
                lines.append(f"| {row['condition']} | `{row['arm']}` | {row['test_set']} | {shown} |")
        lines.append("")
    return lines


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
    found = row["against"].get(other)
    if found is None:
        return f"{accuracy} (-)"
    return f"{accuracy} ({_difference(found)})"


def _difference(found: dict) -> str:
    star = "*" if found["low"] > 0 or found["high"] < 0 else ""
    return f"{100 * found['value']:+.1f}{star}: {100 * found['low']:+.1f} to {100 * found['high']:+.1f}"


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


def learnt(results: Sequence[dict]) -> list[str]:
    """How much of the teacher's map the students of each arm explain, before and after training, mean over seeds."""
    found: dict[tuple, list[dict]] = {}
    for record in results:
        shares = record.get("training", {}).get("explained")
        if shares and not record["candidate"]:
            found.setdefault((*group_of(record), record["arm"]), []).append(shares)
    if not found:
        return []
    parts = {"whole rows": "explained", "own sequence": "explained_intra", "other response": "explained_inter"}
    lines = ["## Share of the map that is explained, before and after training (1: all, 0: equal attention)", ""]
    lines += ["| trained on | student | condition | arm | seeds | " + " | ".join(parts) + " |", "| --- " * 8 + "|"]
    for (train, student, condition, arm), each in found.items():
        means = [[_mean_of(each, time, name) for time in ("before", "after")] for name in parts.values()]
        shown = " | ".join(f"{old:.2f}, {new:.2f}" for old, new in means)
        lines.append(f"| {train} | {student} | {condition} | `{arm}` | {len(each)} | {shown} |")
    return [*lines, ""]


def _mean_of(records: Sequence[dict], time: str, name: str) -> float:
    return float(np.mean([record[time].get(name, np.nan) for record in records]))


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
