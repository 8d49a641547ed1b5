"""From rewards to a `Comparison`: accuracies, paired differences, costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..diagnostics.result import Diagnosis
from ..reward_benchmarks.running import BenchmarkRun
from ..utils.privacy import public_name
from .arms import Arm
from .config import BASELINE
from .data import ComparisonData
from .result import BenchmarkResult, Comparison, Cost, ModelResult, TeacherResult
from .runs import Training
from .scoring import Rewards
from .statistics import mean_outcome, paired_difference, right
from .teachers import TeacherPlan


@dataclass(frozen=True)
class BenchmarkScores:
    """Result and scores of the items, `(items,)`, by model and seed; how many of their prompts are trained on."""

    of_models: dict[str, dict[int, tuple[BenchmarkRun, np.ndarray]]]
    trained_prompts: int


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Args:
        rewards: by model and seed. judged: each teacher, the models it taught, its margins `(rows,)`.
        benchmarks: by name. diagnoses, parameters: by model.
    """

    rewards: dict[str, dict[int, Rewards]]
    judged: list[tuple[TeacherPlan, tuple[str, ...], np.ndarray]]
    benchmarks: dict[str, BenchmarkScores]
    diagnoses: dict[str, Diagnosis]
    parameters: dict[str, int]


def summarize(
    arms: Sequence[Arm],
    data: ComparisonData,
    runs: Mapping[str, Mapping[int, Training]],
    measured: Measured,
    resamples: int,
) -> Comparison:
    """Everything that the page shows. A pair that one model cannot read is excluded for all.

    Raises:
        ValueError: no pair is left.
    """
    reasons: dict[int, str] = {}
    for of_seeds in measured.rewards.values():
        for each in of_seeds.values():
            reasons |= each.left_out
    kept = np.array([number not in reasons for number in range(len(data.rows))])
    if not kept.any():
        raise ValueError(f"There is no pair to compare on: {dict(Counter(reasons.values()))}. Give shorter texts.")
    margins = {
        name: {seed: each.margins[kept] for seed, each in of_seeds.items()}
        for name, of_seeds in measured.rewards.items()
    }
    return Comparison(
        data=data.description,
        pairs=int(kept.sum()),
        seeds=tuple(margins[BASELINE]),
        dropped=data.dropped,
        left_out=dict(Counter(reasons.values())),
        models=tuple(_model(arm, arms[0], margins, runs[arm.name], measured, resamples) for arm in arms),
        teachers=tuple(_teacher(*each, kept, resamples) for each in measured.judged),
        benchmarks=tuple(_benchmark(name, each, resamples) for name, each in measured.benchmarks.items()),
        training_pairs=data.training_pairs,
        resamples=resamples,
    )


def _model(
    arm: Arm,
    baseline: Arm,
    margins: Mapping[str, Mapping[int, np.ndarray]],
    runs: Mapping[int, Training],
    measured: Measured,
    resamples: int,
) -> ModelResult:
    own = {seed: right(values) for seed, values in margins[arm.name].items()}
    theirs = {seed: right(values) for seed, values in margins[BASELINE].items()}
    every = np.stack(list(margins[arm.name].values()))
    explained = [each for run in runs.values() if (each := run.explained()) is not None]
    is_baseline = arm.name == BASELINE
    return ModelResult(
        name=arm.name,
        changes={
            key: (_shown(old), _shown(new))
            for key, (old, new) in arm.changed_from(baseline).items()
            if key in {**arm.settings, **baseline.settings}
        },
        accuracy=mean_outcome(own, resamples),
        of_seeds={seed: float(values.mean()) for seed, values in own.items()},
        difference=None if is_baseline else paired_difference(own, theirs, resamples),
        log_loss=log_loss(every),
        mean_margin=float(every.mean()),
        ties=int((every == 0).sum()),
        explained=float(np.mean(explained)) if explained and arm.is_aligned else None,
        cost=_cost(list(runs.values()), measured.parameters[arm.name]),
        diagnosis=measured.diagnoses.get(arm.name),
    )


def _shown(value: object) -> str:
    """A value as text; of what is on this machine the end of its path alone."""
    return public_name(value) if isinstance(value, str) else str(value)


def log_loss(margins: np.ndarray) -> float:
    """The mean of `-log sigmoid(margin)` in nats."""
    return float(np.logaddexp(0, -margins.astype(np.float64)).mean())


def _cost(runs: Sequence[Training], parameters: int) -> Cost:
    every = [run.costs() for run in runs]
    whole = [costs for run, costs in zip(runs, every, strict=True) if costs and not run.was_interrupted()]
    peaks = [(costs["peak_memory_bytes"], costs["peak_memory_of"]) for costs in every if "peak_memory_bytes" in costs]
    peak = max(peaks, default=(None, None))
    return Cost(
        seconds=float(np.mean([costs["train_runtime"] for costs in whole])) if whole else None,
        step_seconds=(
            float(np.mean([costs["train_runtime"] / max(costs["global_step"], 1) for costs in whole]))
            if whole
            else None
        ),
        peak_memory_bytes=peak[0],
        peak_memory_of=peak[1],
        parameters=parameters,
    )


def _teacher(
    plan: TeacherPlan, models: tuple[str, ...], margins: np.ndarray, kept: np.ndarray, resamples: int
) -> TeacherResult:
    margins = margins[kept]
    return TeacherResult(
        name=public_name(plan.name),
        models=models,
        is_given=plan.training is None,
        accuracy=mean_outcome({0: right(margins)}, resamples),
        log_loss=log_loss(margins),
        mean_margin=float(margins.mean()),
        ties=int((margins == 0).sum()),
    )


def _benchmark(name: str, found: BenchmarkScores, resamples: int) -> BenchmarkResult:
    scores = {
        model: {seed: each for seed, (_, each) in of_seeds.items()} for model, of_seeds in found.of_models.items()
    }
    results = {model: [run.result for run, _ in of_seeds.values()] for model, of_seeds in found.of_models.items()}
    return BenchmarkResult(
        name=name,
        items=len(next(iter(scores[BASELINE].values()))),
        trained_prompts=found.trained_prompts,
        scores={model: mean_outcome(of_seeds, resamples) for model, of_seeds in scores.items()},
        differences={
            model: paired_difference(of_seeds, scores[BASELINE], resamples)
            for model, of_seeds in scores.items()
            if model != BASELINE
        },
        totals={model: float(np.mean([result.total for result in each])) for model, each in results.items()},
        missing=results[BASELINE][0].missing,
    )
