"""`compare`: trains baseline and interaction-distilled models from one recipe, and reports the differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..diagnostics.config import DiagnosisConfig
from ..diagnostics.diagnosis import diagnose
from ..diagnostics.report.page import write_report
from ..diagnostics.result import Diagnosis
from ..reward_benchmarks import find_benchmark
from ..reward_benchmarks.items import Benchmark, Item
from ..reward_benchmarks.loading import load_items
from ..scoring.model_digests import digest_of_model
from ..scoring.scorer import RewardScorer
from ..utils.devices import find_device
from ..utils.launching import launcher
from ..utils.model_config import require_model
from ..utils.sources import refuse_same_folder
from ..utils.stages import Stages
from .arms import Arm, Recipe, named_recipes, read_arms
from .config import CompareConfig
from .data import ComparisonData, item_key, prepare_data
from .report.page import write_page
from .result import Comparison
from .runs import Clock, Training, locked, merged, refuse_launched, time_left
from .scoring import Rewards, score_benchmark, score_rows, teacher_margins
from .summary import BenchmarkScores, Measured, summarize
from .teachers import TeacherPlan, plan_teacher, require_use, shared_teachers


@dataclass(frozen=True)
class _Plan:
    """What is to be done.

    Args:
        data: what is scored and trained on. teachers: by arm. runs: by arm and seed. trainings: all, in order.
        benchmarks: with their items.
    """

    data: ComparisonData
    teachers: dict[str, TeacherPlan]
    runs: dict[str, dict[int, Training]]
    trainings: list[Training]
    benchmarks: list[tuple[Benchmark, list[Item]]]


def compare(
    recipe: Recipe,
    config: CompareConfig,
    *,
    recipes: Mapping[str, Recipe] | None = None,
    overrides: Sequence[str] = (),
    stages: Stages | None = None,
    is_progress_shown: bool = True,
) -> Comparison:
    """Train reward models from recipes that differ, and compare them on pairs that none was trained on.

    The baseline is the recipe with `alignment_weight: 0`, that is, TRL's `RewardTrainer`; of a recipe that has that
    already, the recipe without its options of the reward loss. Each model is trained with several seeds, each in a
    process of its own. Where the recipe's `teacher_model` is an encoder, a teacher is fitted
    once on the rows that the models train on. A call that was killed resumes where it stopped.

    Args:
        recipe: of `interdistill reward`: a YAML file, or a mapping of its keys.
        config: where results go, seeds, further recipes, what is scored.
        recipes: further recipes by name, beside those of `config`.
        overrides: words of a command line, `--key value ...`, that change every recipe.
        stages: announces the stages, `num_stages` of them; by default there is one line each on the terminal.
        is_progress_shown: whether there are these lines.

    Returns:
        The comparison, also written to `config.output`: `index.html`, `comparison.json`, `diagnosis/index.html`.

    Raises:
        ValueError: unknown keys, equal recipes, a missing split, prompts that are trained on and scored, runs of
            other settings or data in `config.output`.
        RunError: a training failed, for example on a loss that is not finite.
    """
    refuse_launched()
    device = find_device(config.device)
    arms = read_arms(recipe, {**named_recipes(config.recipes), **(recipes or {})}, overrides)
    require_use(arms, config)
    benchmarks = [find_benchmark(name) for name in config.benchmark or []]
    for arm in arms:
        read = {
            "dataset_name": arm.data.dataset_name,
            "model": arm.model.model_name_or_path,
            "teacher_model": arm.args.teacher_model,
        }
        refuse_same_folder("`output`", config.output, {f"`{key}` of `{arm.name}`": name for key, name in read.items()})
        if not arm.args.trust_remote_code:
            require_model("model", str(arm.model.model_name_or_path), revision=arm.model.model_revision)
    with locked(config.output) as lock:
        log, count = Path(config.output) / "compare.log", num_stages(config, len(arms))
        shown = stages or Stages(log, count, is_shown=is_progress_shown)
        with shown.stage("read the data", is_log_shown=False):
            plan = _plan(arms, config, benchmarks)
            if stages is None:
                shown.count += sum(training.command == "teacher" for training in plan.trainings)
        _train(plan.trainings, shown, lock)
        measured = _Work(arms, config, plan, device).measure(shown)
        comparison = summarize(arms, plan.data, plan.runs, measured, config.resamples)
        write_page(comparison, config.output)
    return comparison


def num_stages(config: CompareConfig, recipes: int = 2, teachers: int = 0) -> int:
    """How many stages a comparison announces.

    Args:
        config: its settings. recipes: with the baseline. teachers: how many are to be fitted.
    """
    return teachers + config.seeds * recipes + 2 + len(config.benchmark or []) + bool(config.diagnosis_pairs)


def _plan(arms: Sequence[Arm], config: CompareConfig, benchmarks: Sequence[Benchmark]) -> _Plan:
    """Read all data, and check everything that can be checked before the first training."""
    data = prepare_data(arms, config)
    sources: Sequence[str | None] = config.benchmark_data or [None] * len(benchmarks)
    items = [(each, load_items(each, source)) for each, source in zip(benchmarks, sources, strict=True)]
    plans = {arm.name: plan_teacher(arm, data, config) for arm in arms}
    teachers = shared_teachers({arm: plan for arm, plan in plans.items() if plan is not None})
    seeds = [arms[0].args.seed + number for number in range(config.seeds)]
    runs = {arm.name: {seed: _training(arm, seed, data, teachers, config) for seed in seeds} for arm in arms}
    fits = {id(plan): plan.training for plan in teachers.values() if plan.training is not None}
    trainings = [*fits.values(), *(runs[arm.name][seed] for seed in seeds for arm in arms)]
    for training in trainings:
        training.check(config.overwrite)
    return _Plan(data, teachers, runs, trainings, items)


def _training(
    arm: Arm, seed: int, data: ComparisonData, teachers: Mapping[str, TeacherPlan], config: CompareConfig
) -> Training:
    changes = {**data.changes[arm.name], "seed": seed}
    digests = {
        "training rows": data.digests[arm.name],
        "model": digest_of_model(str(arm.model.model_name_or_path)),
    }
    if arm.name in teachers:
        changes["teacher_model"] = teachers[arm.name].name
        digests["teacher"] = teachers[arm.name].digest
    folder = Path(config.output) / "runs" / arm.name / f"seed-{seed}"
    words = launcher(config.num_processes, config.accelerate_config)
    return Training("reward", folder, merged(arm.settings, changes), digests, words)


def _train(trainings: Sequence[Training], stages: Stages, lock: int) -> None:
    clock = Clock()
    missing = sum(training.command == "reward" and not training.is_finished for training in trainings)
    for training in trainings:
        is_model, folder = training.command == "reward", training.folder
        title = f"train {folder.parent.name}, {folder.name.replace('-', ' ')}" if is_model else "fit the teacher"
        with stages.stage(title) as notes:
            if training.is_finished:
                notes.append("was finished")
                continue
            if not is_model:
                training.run(lock)
                continue
            with clock.measured():
                training.run(lock)
            missing -= 1
            notes += [left] if (left := time_left(clock.seconds, missing)) else []


class _Work:
    """Scores and diagnoses the trained models, one at a time in memory."""

    def __init__(self, arms: Sequence[Arm], config: CompareConfig, plan: _Plan, device: str) -> None:
        self.arms, self.config, self.plan, self.device = arms, config, plan, device
        self.data, self.runs = plan.data, plan.runs
        self.parameters: dict[str, int] = {}

    def measure(self, stages: Stages) -> Measured:
        """Everything that is measured, as columns of numbers."""
        teachers = self.plan.teachers
        with stages.stage(f"score {len(self.data.rows)} held-out pairs"):
            rewards = {arm.name: {seed: self._rewards(arm, seed) for seed in self.runs[arm.name]} for arm in self.arms}
            judged = [
                (plan, tuple(arm for arm, own in teachers.items() if own is plan), self._judged(plan))
                for plan in {id(plan): plan for plan in teachers.values()}.values()
            ]
        scores = {}
        for benchmark, items in self.plan.benchmarks:
            with stages.stage(f"score {len(items)} items of {benchmark.name}"):
                scores[benchmark.name] = self._benchmark(benchmark, items)
        diagnoses = {}
        if self.config.diagnosis_pairs:
            with stages.stage(f"diagnose on {min(self.config.diagnosis_pairs, len(self.data.rows))} pairs"):
                diagnoses = {arm.name: self._diagnosis(arm) for arm in self.arms}
                write_report(list(diagnoses.values()), str(Path(self.config.output) / "diagnosis"))
        return Measured(rewards, judged, scores, diagnoses, self.parameters)

    def _scorer(self, arm: Arm, seed: int) -> RewardScorer:
        scorer = RewardScorer.from_pretrained(
            str(self.runs[arm.name][seed].folder), batch_size=self.config.batch_size, dtype="float32"
        ).to(self.device)
        self.parameters[arm.name] = sum(parameter.numel() for parameter in scorer.model.parameters())
        return scorer

    def _rewards(self, arm: Arm, seed: int) -> Rewards:
        return score_rows(self._scorer(arm, seed), self.data.rows, self.runs[arm.name][seed].folder, self.data.digest)

    def _judged(self, plan: TeacherPlan) -> np.ndarray:
        return teacher_margins(plan.name, self.data.rows, self.config.batch_size, self.device)

    def _benchmark(self, benchmark: Benchmark, items: list[Item]) -> BenchmarkScores:
        found = {
            arm.name: {
                seed: score_benchmark(self._scorer(arm, seed), benchmark, items, run.folder)
                for seed, run in self.runs[arm.name].items()
            }
            for arm in self.arms
        }
        trained = sum(item_key(item) in self.data.trained_prompts for item in items)
        return BenchmarkScores(found, trained)

    def _diagnosis(self, arm: Arm) -> Diagnosis:
        seed, run = next(iter(self.runs[arm.name].items()))
        chosen = np.random.default_rng(0).permutation(len(self.data.rows))[: self.config.diagnosis_pairs]
        rows = [self.data.rows[i] for i in sorted(chosen)]
        settings = DiagnosisConfig(batch_size=self.config.batch_size)
        records = run.folder / f"diagnosis-{self.data.digest}-{len(rows)}"
        return diagnose(self._scorer(arm, seed), rows, settings, name=arm.name, records_dir=str(records))
