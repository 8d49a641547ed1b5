"""Each arm against Bradley-Terry, the controls and label smoothing, pair by pair: numbers only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from measures import decode_outcomes

from hf_interdistill.comparison.statistics import crossed_bootstrap

_DRAWS = 10_000
REFERENCES = ("bradley_terry", "uniform", "shuffled", "label_smoothing")
Group = tuple[str, str, str]  # train, student, condition


def group_of(record: dict) -> Group:
    return record["train"], record["student"], record["condition"]


def groups(runs: Sequence[dict]) -> list[Group]:
    return list(dict.fromkeys(group_of(record) for record in runs))


def of_group(runs: Sequence[dict], group: Group) -> list[dict]:
    return [record for record in runs if group_of(record) == group]


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
                found.setdefault(name, {})[record["seed"]] = decode_outcomes(test)
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
            **dict(zip(("train", "student", "condition"), group_of(runs[0]), strict=True)),
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
    against = {other: paired_difference(of(found, arm), of(found, other)) for other in REFERENCES}
    others = [other for other in REFERENCES if other != arm]
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
    tests = zip(mine, theirs, strict=True)
    tables = [np.stack([own[seed] - other[seed] for seed in common]) for own, other in tests]  # (seeds, pairs) each
    value, low, high = crossed_bootstrap(tables, draws)
    return {"value": value, "low": low, "high": high, "seeds": len(common)}


def _common(mine: Sequence[dict[int, Any]], theirs: Sequence[dict[int, Any]]) -> list[int]:
    """The seeds that all tests of both arms have."""
    return sorted(set.intersection(*(set(test) for test in (*mine, *theirs))))


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
