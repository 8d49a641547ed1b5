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
from arms import Arm, StudyTrainer, soft_targets
from datasets import Dataset
from measures import cued_margins, diagnosis_of, rewards_of, rewards_with_cue, scaled_nll, summary
from preferences import Row, Shortener, test_rows, training_and_validation, under_condition
from students import make_student, student_tokenizer

from hf_interdistill import InteractionDistillationConfig, InteractionTeacher, RewardScorer
from hf_interdistill.interaction.teacher_training import InteractionTeacherConfig
from hf_interdistill.scoring.formatting import RewardFormatter

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


class Bench:
    """What the runs share: rows, teachers and the settings behind them.

    Args:
        config: what `study.yaml` holds. encoder: folder of MiniLM.
    """

    def __init__(self, config: dict[str, Any], encoder: str):
        self.config, self.encoder = config, encoder
        self.folder = Path(config["output_dir"])
        self.data = Path(config["data"])
        self.tokenizer = student_tokenizer(encoder)
        formatter = RewardFormatter(self.tokenizer)
        cue = len(self.tokenizer(config["cue"]["phrase"], add_special_tokens=False)["input_ids"])
        # The cue must fit into every row, and must be all that it changes.
        self.shortener = Shortener(formatter, config["max_length"] - cue, config["longest_response"])
        self._rows: dict[str, Any] = {}
        self._teachers: dict[str, InteractionTeacher] = {}

    # Rows

    def training_rows(self, train: str, condition: str) -> list[Row]:
        return under_condition(self._parts(train)[0], condition, self.config["cue"], self.config["data_seed"])

    def validation_rows(self, train: str) -> list[Row]:
        return self._parts(train)[1]

    def _parts(self, train: str) -> tuple[list[Row], list[Row]]:
        if train not in self._rows:
            parts = training_and_validation(
                self.data, train, self.config["validation_pairs"], self.config["data_seed"]
            )
            limit = self.config.get("training_pairs")
            self._rows[train] = [[self.shortener(row) for row in part[:limit]] for part in parts]
        return self._rows[train]

    def tests(self) -> dict[str, list[Row]]:
        if "tests" not in self._rows:
            seed = self.config["data_seed"]
            self._rows["tests"] = {
                name: test_rows(self.data, name, pairs, self.shortener, seed)
                for name, pairs in self.config["test_pairs"].items()
            }
        return self._rows["tests"]

    # Teachers

    def teacher(self, kind: str, train: str, condition: str) -> InteractionTeacher:
        """The fitted teacher of these training rows (given, kept from before, or fitted now), or the raw encoder."""
        name = "untrained" if kind == "untrained" else f"{train}/{condition}"
        if name not in self._teachers:
            self._teachers = {name: self._load_teacher(name, train, condition)}  # one at a time in memory
        return self._teachers[name]

    def _load_teacher(self, name: str, train: str, condition: str) -> InteractionTeacher:
        settings = self.config["teacher"]
        length = settings["teacher_max_length"]
        if name == "untrained":
            return InteractionTeacher.from_pretrained(self.encoder, max_length=length).freeze()
        given = self.config["teachers"].get(name)
        folder = Path(given or self.folder / "teachers" / name)
        if not given and not (folder / "interaction_teacher.json").exists():
            teacher = InteractionTeacher.from_pretrained(self.encoder, max_length=length)
            args = InteractionTeacherConfig(output_dir=str(folder), **settings)
            teacher.fit(self.training_rows(train, condition), str(folder), args=args, resume_from_checkpoint=True)
        return InteractionTeacher.from_pretrained(str(folder), max_length=length).freeze()

    def teacher_mark(self, kind: str, train: str, condition: str) -> dict[str, Any] | None:
        """What tells one teacher from another: a checksum of its score head and last weights, and its accuracy."""
        if kind == "none":
            return None
        teacher = self.teacher(kind, train, condition)
        last = list(teacher.reader.encoder.parameters())[-5:] if kind == "fitted" else []
        weights = b"".join(p.detach().cpu().numpy().tobytes() for p in last)
        metrics = teacher.metrics or {}
        return {
            "kind": kind,
            "checksum": zlib.crc32(weights),
            **{key: metrics.get(key) for key in ("accuracy", "order_agreement", "pairs")},
        }

    def teacher_margins(self, kind: str, train: str, condition: str) -> torch.Tensor:
        """The teacher's margins on its training rows, both reading orders averaged, `(rows,)`; worked out once."""
        mark = self.teacher_mark(kind, train, condition)
        path = self.folder / "teacher_margins" / f"{train}.{condition}.{kind}.{mark['checksum']}.npy"
        if not path.exists():
            teacher = self.teacher(kind, train, condition).to("cuda" if torch.cuda.is_available() else "cpu")
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, teacher.judge(self.training_rows(train, condition)).mean(1).numpy())
        return torch.from_numpy(np.load(path))

    # Runs

    def settings(self, run: Run, arm: Arm) -> dict[str, Any]:
        """Everything that decides how a run comes out, in plain values."""
        student = self.config["students"][run.student]
        shared = ("max_length", "longest_response", "cue", "validation_pairs", "training_pairs", "data_seed")
        return {
            "data": {name: self.config.get(name) for name in (*shared, "test_pairs")},
            "student": {name: value for name, value in student.items() if name != "arguments"},
            "arguments": {**self.config["training"], **student["arguments"], **arm.arguments},
            "arm": {name: getattr(arm, name) for name in sorted(_ARM_FIELDS)},
            "teacher": self.teacher_mark(arm.teacher, run.train, run.condition),
        }

    def train(self, run: Run, arm: Arm, arguments: dict[str, Any]) -> tuple[RewardScorer, dict[str, Any]]:
        """Train the student of a run; returns it ready to score, and what the last log said."""
        rows = self.training_rows(run.train, run.condition)
        model = make_student(run.student, self.config["students"][run.student], self.encoder, run.seed)
        columns = {"margin": arm.margin} if arm.margin else {}
        dataset = Dataset.from_list([{**row, **columns, "length": self._length(row)} for row in rows])
        margins = self.teacher_margins(arm.teacher, run.train, run.condition) if arm.score_share else None
        is_aligned = bool(arguments["alignment_weight"])
        trainer = StudyTrainer(
            model=model,
            args=InteractionDistillationConfig(
                output_dir=str(self.folder / "scratch"),
                max_length=self.config["max_length"],
                seed=run.seed,
                save_strategy="no",
                **arguments,
            ),
            train_dataset=dataset,
            processing_class=self.tokenizer,
            teacher=self.teacher(arm.teacher, run.train, run.condition) if is_aligned else None,
            targets=soft_targets(arm, len(rows), margins),
            arm=arm,
        )
        if len(trainer.train_dataset) != len(rows):
            raise ValueError(f"{len(rows) - len(trainer.train_dataset)} of {len(rows)} pairs do not fit `max_length`.")
        trainer.train()
        logs = [log for log in trainer.state.log_history if "loss" in log]
        kept = {key: value for key, value in (logs[-1] if logs else {}).items() if isinstance(value, int | float)}
        scorer = RewardScorer(trainer.model, self.tokenizer, batch_size=self.config["scoring_batch_size"])
        return scorer, {"steps": trainer.state.global_step, "last_log": kept}

    def _length(self, row: Row) -> int:
        """Tokens of both texts: rows of similar length come into one batch."""
        return sum(len(self.shortener.formatter.encode(row["prompt"], row[side])) for side in ("chosen", "rejected"))

    def carry_out(self, run: Run, arm: Arm, settings: dict[str, Any]) -> dict[str, Any]:
        """Train and measure; rewards of all texts go to `rewards/`, the record of the run is returned."""
        start, cpu = time.perf_counter(), time.process_time()
        scorer, progress = self.train(run, arm, settings["arguments"])
        trained = time.perf_counter()
        print("CPU", trained_cpu - cpu)
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
            "teacher": settings["teacher"],
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
        """Summaries of the rewards of each set; those with the cue become accuracies with it on either side."""
        cue = self.config["cue"]
        margins = {name: values[:, 0] - values[:, 1] for name, values in rewards.items()}
        validation = margins.pop("validation")
        tests, cued = {}, {}
        for name, values in margins.items():
            if not name.endswith("+cue"):
                tests[name] = summary(values)
                continue
            plain = rewards[name.removesuffix("+cue")]
            sides = cued_margins(plain, rewards[name], cue["share"], self.config["data_seed"])
            cued[name.removesuffix("+cue")] = {side: summary(each) for side, each in sides.items()}
        return {
            "validation": {**summary(validation), "scaled_nll": scaled_nll(validation)},
            "tests": tests,
            "cued": cued,
        }

    def keep_rewards(self, run: Run, rewards: dict[str, np.ndarray]) -> None:
        path = self.rewards_path(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **rewards)

    def rewards_path(self, run: Run) -> Path:
        return self.folder / "rewards" / f"{run.id}.npz"


def checksum(settings: dict[str, Any]) -> str:
    """Eight digits that change when any setting does."""
    return f"{zlib.crc32(json.dumps(settings, sort_keys=True).encode()):08x}"


def describe_hardware() -> str:
    """Processor or accelerator, and cores in use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
