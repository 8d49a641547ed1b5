"""`Comparison`: the findings, and their sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..diagnostics.result import Diagnosis
from ..utils.wording import count, signed, verdict_of
from .config import BASELINE
from .statistics import Estimate


@dataclass(frozen=True)
class Cost:
    """The cost of a model's trainings, mean over seeds; `None` where no training was measured from start to end.

    Args:
        seconds: of a training, with its evaluations and saves. step_seconds: the same for one optimizer step.
        peak_memory_bytes: the most of any seed, of one process. peak_memory_of: `GPU` or `process`.
        parameters: of the model.
    """

    seconds: float | None
    step_seconds: float | None
    peak_memory_bytes: int | None
    peak_memory_of: str | None
    parameters: int


@dataclass(frozen=True)
class ModelResult:
    """A model on the scored pairs.

    Args:
        name: of its recipe. changes: keys of the recipe that differ from the baseline's, with both values, as text.
        accuracy: ties count half. of_seeds: the same for each seed. difference: from the baseline; `None` for itself.
        log_loss: nats. mean_margin: chosen minus rejected. ties: pairs with equal rewards, over all seeds.
        explained: share of the teacher's map that was learnt, mean over seeds; `None` where that was not logged.
        cost: of its trainings. diagnosis: of its first seed.
    """

    name: str
    changes: dict[str, tuple[str, str]]
    accuracy: Estimate
    of_seeds: dict[int, float]
    difference: Estimate | None
    log_loss: float
    mean_margin: float
    ties: int
    explained: float | None
    cost: Cost
    diagnosis: Diagnosis | None

    @property
    def verdict(self) -> str | None:
        """`pass`: right more often than the baseline; `flag`: less often; `inconclusive`: the interval includes zero;
        `None` for the baseline itself."""
        return None if self.difference is None else verdict_of(self.difference.low, self.difference.high)


@dataclass(frozen=True)
class TeacherResult:
    """A teacher on the scored pairs. `models` are those that it taught; `is_given`: it was fitted elsewhere."""

    name: str
    models: tuple[str, ...]
    is_given: bool
    accuracy: Estimate
    log_loss: float
    mean_margin: float
    ties: int


@dataclass(frozen=True)
class BenchmarkResult:
    """Models on a benchmark.

    Args:
        name: of the benchmark. items: how many are judged. trained_prompts: items whose prompt was trained on.
        scores: mean score of an item by model. differences: from the baseline. totals: the score as the benchmark's
            authors count it, mean over seeds. missing: subsets that were not in the data.
    """

    name: str
    items: int
    trained_prompts: int
    scores: dict[str, Estimate]
    differences: dict[str, Estimate]
    totals: dict[str, float]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Models of several recipes on the same pairs.

    Args:
        data: where the pairs are from. pairs: how many were scored. seeds: of the trainings.
        dropped: pairs that were not scored since their prompt is trained on. left_out: the others, by reason.
        models: the baseline first. teachers, benchmarks: where there are any.
        training_pairs: how many the recipe trains on, before those that are too long are left out.
        resamples: of the bootstrap.
    """

    data: str
    pairs: int
    seeds: tuple[int, ...]
    dropped: int
    left_out: dict[str, int]
    models: tuple[ModelResult, ...]
    teachers: tuple[TeacherResult, ...]
    benchmarks: tuple[BenchmarkResult, ...]
    training_pairs: int
    resamples: int

    def model(self, name: str) -> ModelResult:
        """The result of a recipe by its name."""
        return next(each for each in self.models if each.name == name)

    def verdicts(self) -> list[str]:
        """One sentence for each model but the baseline: `pass`, `flag` or `inconclusive`, and the difference."""
        return [
            f"{each.verdict}: {difference_text(each.name, each.difference)}."
            for each in self.models
            if each.difference is not None
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain values; the diagnoses by their findings."""
        values = asdict(self)
        for shown, model in zip(values["models"], self.models, strict=True):
            shown["verdict"] = model.verdict
            shown["diagnosis"] = None if model.diagnosis is None else model.diagnosis.to_dict()["findings"]
            shown["of_seeds"] = {str(seed): value for seed, value in model.of_seeds.items()}
        return {"verdicts": self.verdicts(), **_plain(values)}


def difference_text(name: str, difference: Estimate) -> str:
    """A difference from the baseline, without a verdict."""
    of_seeds = count(difference.seeds, "seed")
    alone = "" if difference.seeds > 1 else " (the interval is over pairs alone: another seed may differ by more)"
    return (
        f"{name} minus {BASELINE} {signed(difference.value)} points, 95 % interval {signed(difference.low)} to "
        f"{signed(difference.high)}, on {count(difference.pairs, 'pair')} and {of_seeds}{alone}"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
