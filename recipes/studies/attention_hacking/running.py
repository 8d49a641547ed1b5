"""One run of the study: rows, teacher, student, training, measuring."""

from __future__ import annotations

import json
import platform
import time
import zlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import trl
from arms import Arm, soft_targets
from datasets import Dataset
from materials import Materials
from measures import comparable, cued_margins, diagnosis_of, rewards_of, rewards_with_cue, summary
from objectives import ObjectiveTrainer, StudyConfig
from records import rounded

from hf_interdistill import RewardScorer
from hf_interdistill.interaction.losses.explained import EXPLAINED_KEYS

TRAINED_SETS = {"hh_harmless": ["hh_harmless"], "truthfulqa": ["truthfulqa"], "mix": ["hh_harmless", "truthfulqa"]}
_ARM_FIELDS = {field.name for field in fields(Arm)} - {"arguments"}


@dataclass(frozen=True)
class Run:
    """What one training is of. `candidate` names settings that are tried on the validation rows alone."""

    train: str
    student: str
    condition: str
    arm: str
    seed: int
    candidate: str = ""

    @property
    def id(self) -> str:
        parts = (self.train, self.student, self.condition, self.arm, self.candidate, f"seed{self.seed}")
        return ".".join(part for part in parts if part)


def with_changes(arm: Arm, changes: dict[str, Any]) -> Arm:
    """An arm with some settings changed: its own fields by name, anything else is an argument of the trainer."""
    own = {name: value for name, value in changes.items() if name in _ARM_FIELDS}
    arguments = {name: value for name, value in changes.items() if name not in _ARM_FIELDS}
    return replace(arm, **own, arguments={**arm.arguments, **arguments})


class Bench(Materials):
    """Trains and measures on the study's materials; see `Materials` for the arguments."""

    def settings(self, run: Run, arm: Arm) -> dict[str, Any]:
        """Everything that decides how a run comes out, in plain values."""
        student = self.config["students"][run.student]
        shared = ("max_length", "longest_response", "cue", "validation_pairs", "training_pairs", "data_seed")
        return {
            "data": {name: self.config.get(name) for name in (*shared, "test_pairs")},
            "student": {name: value for name, value in student.items() if name != "arguments"},
            "arguments": {**self.config["training"], **student["arguments"], **arm.arguments},
            "arm": {name: getattr(arm, name) for name in sorted(_ARM_FIELDS)},
            "teacher": None if arm.teacher == "none" else {"kind": arm.teacher, **self.teacher_settings(arm.teacher)},
        }

    def train(self, run: Run, arm: Arm, arguments: dict[str, Any]) -> tuple[RewardScorer, dict[str, Any]]:
        """Train the student of a run; returns it ready to score, and what the last log said."""
        rows = self.training_rows(run.train, run.condition)
        model = self.student(run.student, run.train, run.seed)
        columns = {"margin": arm.margin} if arm.margin else {}
        dataset = Dataset.from_list([{**row, **columns} for row in rows])
        margins = self.teacher_margins(arm.teacher, run.train, run.condition) if arm.score_share else None
        targets = soft_targets(arm, len(rows), margins)
        if targets is not None:
            dataset = dataset.add_column("preference_probability", targets.tolist())
        is_aligned = bool(arguments["alignment_weight"])
        trainer = ObjectiveTrainer(
            model=model,
            args=StudyConfig(
                output_dir=str(self.folder / "scratch"),
                max_length=self.config["max_length"],
                seed=run.seed,
                save_strategy="no",
                teacher_cache=str(self.folder / "maps") if is_aligned else None,  # all runs of a teacher share them
                **arm.loss_options,
                **arguments,
            ),
            train_dataset=dataset,
            processing_class=self.tokenizer,
            teacher=self.teacher(arm.teacher, run.train, run.condition) if is_aligned else None,
        )
        if len(trainer.train_dataset) != len(rows):
            raise ValueError(f"{len(rows) - len(trainer.train_dataset)} of {len(rows)} pairs do not fit `max_length`.")
        trainer.train()
        logs = [log for log in trainer.state.log_history if "loss" in log]
        last = logs[-1] if logs else {}
        kept = {key: last[key] for key in ("loss", "interaction/loss") if key in last}
        scorer = RewardScorer(trainer.model, self.tokenizer, batch_size=self.config["scoring_batch_size"])
        return scorer, {"steps": trainer.state.global_step, "last_log": kept, **explained(trainer.state.log_history)}

    def carry_out(self, run: Run, arm: Arm, settings: dict[str, Any]) -> dict[str, Any]:
        """Train and measure; rewards of all texts go to `rewards/`, the record of the run is returned."""
        start, cpu = time.perf_counter(), time.process_time()
        scorer, progress = self.train(run, arm, settings["arguments"])
        trained = time.perf_counter()
        rewards = {"validation": rewards_of(scorer, self.validation_rows(run.train))}
        diagnosis = None
        if not run.candidate:
            tests = self.tests()
            for name, rows in tests.items():
                if name in TRAINED_SETS[run.train]:
                    plain_and_cued = rewards_with_cue(scorer, rows, self.config["cue"]["phrase"])
                    rewards[name], rewards[f"{name}+cue"] = plain_and_cued
                else:
                    rewards[name] = rewards_of(scorer, rows)
            diagnosis = diagnosis_of(scorer, tests[TRAINED_SETS[run.train][0]], self.config["diagnosis"])
        self.keep_rewards(run, rewards)
        return {
            **self.outcome(rewards),
            "diagnosis": diagnosis,
            "training": progress,
            "seconds": {
                "training": round(trained - start, 1),
                "measuring": round(time.perf_counter() - trained, 1),
                "processor": round(time.process_time() - cpu, 1),
            },
            "hardware": describe_hardware(),
            "versions": {
                "python": platform.python_version(),
                **{module.__name__: module.__version__ for module in (torch, transformers, trl)},
            },
        }

    def outcome(self, rewards: dict[str, np.ndarray]) -> dict[str, Any]:
        """What is kept of the rewards of each set; those with the cue become tests with it on either side."""
        cue = self.config["cue"]
        margins = {name: values[:, 0] - values[:, 1] for name, values in rewards.items()}
        validation = margins.pop("validation")
        tests, cued = {}, {}
        for name, values in margins.items():
            if not name.endswith("+cue"):
                tests[name] = comparable(values)
                continue
            plain = rewards[name.removesuffix("+cue")]
            sides = cued_margins(plain, rewards[name], cue["share"], self.config["data_seed"])
            cued[name.removesuffix("+cue")] = {side: comparable(each) for side, each in sides.items()}
        return {"validation": summary(validation), "tests": tests, "cued": cued}

    def keep_rewards(self, run: Run, rewards: dict[str, np.ndarray]) -> None:
        path = self.rewards_path(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **rewards)

    def rewards_path(self, run: Run) -> Path:
        return self.folder / "rewards" / f"{run.id}.npz"


def explained(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The shares of the teacher's map that the student explains, before the first step and in the last log, if any.

    Args:
        history: `log_history` of a training.
    """
    names = {name: f"interaction/{name}" for name in EXPLAINED_KEYS.values()}
    logs = [log for log in history if names["explained"] in log]
    if not logs or logs[-1]["step"] == 0:
        return {}
    shares = [{name: rounded(log[key], 6) for name, key in names.items() if key in log} for log in (logs[0], logs[-1])]
    return {"explained": dict(zip(("before", "after"), shares, strict=True))}


def checksum(settings: dict[str, Any]) -> str:
    """Eight digits that change when any setting does."""
    return f"{zlib.crc32(json.dumps(settings, sort_keys=True).encode()):08x}"


def describe_hardware() -> str:
    """Processor or accelerator, and cores in use, or how products are rounded."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)}, {'TF32' if torch.backends.cuda.matmul.allow_tf32 else 'float32'}"
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
