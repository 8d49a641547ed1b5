"""What the runs of the study share: rows, teachers and pretrained students, each made once."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import claim
from preferences import Row, Shortener, test_rows, training_and_validation, under_condition
from pretraining import MARK, pretrain
from students import decoder_config, make_student, student_tokenizer
from transformers import PreTrainedModel

from hf_interdistill import InteractionTeacher
from hf_interdistill.interaction.teacher.config import InteractionTeacherConfig
from hf_interdistill.scoring.formatting import RewardFormatter


class Materials:
    """The rows, teachers and pretrained students of a study, each made once.

    Args:
        config: what `study.yaml` holds. encoder: folder of MiniLM.
    """

    def __init__(self, config: dict[str, Any], encoder: str):
        self.config, self.encoder = config, encoder
        self.folder = Path(config["output_dir"])
        self.data = Path(config["data"])
        self.tokenizer = student_tokenizer(encoder)
        self.formatter = RewardFormatter(self.tokenizer)
        cue = len(self.tokenizer(config["cue"]["phrase"], add_special_tokens=False)["input_ids"])
        # The cue must fit into every row, and must be all that it changes.
        self.shortener = Shortener(self.formatter, config["max_length"] - cue, config["longest_response"])
        self._rows: dict[str, Any] = {}
        self._teachers: dict[str, InteractionTeacher] = {}

    def lock_path(self, name: str) -> Path:
        """The lock that a process holds while it makes what is called so."""
        return self.folder / "locks" / f"{name}.lock"

    # Rows

    def training_rows(self, train: str, condition: str) -> list[Row]:
        return under_condition(self._parts(train)[0], condition, self.config["cue"], self.config["data_seed"])

    def validation_rows(self, train: str) -> list[Row]:
        return self._parts(train)[1]

    def _parts(self, train: str) -> tuple[list[Row], list[Row]]:
        if train not in self._rows:
            self._rows[train] = [[self.shortener(row) for row in part] for part in self._whole_parts(train)]
        return self._rows[train]

    def _whole_parts(self, train: str) -> list[list[Row]]:
        """Training and validation rows whose texts are not shortened."""
        parts = training_and_validation(self.data, train, self.config["validation_pairs"], self.config["data_seed"])
        return [part[: self.config.get("training_pairs")] for part in parts]

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
        """The fitted teacher of these training rows (given, kept from before, or fitted now), or the raw encoder.

        Raises:
            ValueError: there is no such kind.
        """
        settings = self.teacher_settings(kind)
        is_variant = kind in self.config["teacher_variants"]
        name = "untrained" if kind == "untrained" else f"{train}/{'clean' if kind == 'clean' else condition}"
        name = f"{name}.{kind}" if is_variant else name
        if name not in self._teachers:
            self._teachers = {name: self._load_teacher(name, settings)}  # one at a time in memory
        return self._teachers[name]

    def teacher_settings(self, kind: str) -> dict[str, Any]:
        """What a kind of teacher is fitted with."""
        variants = self.config["teacher_variants"]
        kinds = ("fitted", "clean", "untrained", *variants)
        if kind not in kinds:
            raise ValueError(f"An arm's `teacher` is {kind!r}, but must be one of none, {', '.join(kinds)}.")
        return {**self.config["teacher"], **variants.get(kind, {})}

    def _load_teacher(self, name: str, settings: dict[str, Any]) -> InteractionTeacher:
        length = settings["teacher_max_length"]
        if name == "untrained":
            return InteractionTeacher.from_pretrained(self.encoder, max_length=length).freeze()
        given = self.config["teachers"].get(name)
        folder = Path(given or self.folder / "teachers" / name)
        if not given:
            with claim(self.lock_path(f"teacher.{name.replace('/', '.')}"), is_waiting=True):
                if not (folder / "interaction_teacher.json").exists():
                    self._fit_teacher(folder, name, settings)
        return InteractionTeacher.from_pretrained(str(folder), max_length=length).freeze()

    def _fit_teacher(self, folder: Path, name: str, settings: dict[str, Any]) -> None:
        train, condition = name.split("/")
        rows = self.training_rows(train, condition.split(".")[0])
        teacher = InteractionTeacher.from_pretrained(self.encoder, max_length=settings["teacher_max_length"])
        args = InteractionTeacherConfig(output_dir=str(folder), **settings)
        teacher.fit(rows, str(folder), args=args, resume_from_checkpoint=True)

    def teacher_mark(self, kind: str, train: str, condition: str) -> dict[str, Any] | None:
        """What tells one teacher from another: a checksum of its score head and last weights, and its accuracy."""
        if kind == "none":
            return None
        teacher = self.teacher(kind, train, condition)
        last = list(teacher.network.encoder.parameters())[-5:] if kind != "untrained" else []
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
        name = f"{train}.{condition}.{kind}.{mark['checksum']}.npy"
        path = self.folder / "teacher_margins" / name
        with claim(self.lock_path(name), is_waiting=True):
            if not path.exists():
                teacher = self.teacher(kind, train, condition).to("cuda" if torch.cuda.is_available() else "cpu")
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, teacher.score_pairs(self.training_rows(train, condition)).mean(1).numpy())
        return torch.from_numpy(np.load(path))

    # Students

    def student(self, name: str, train: str, seed: int) -> PreTrainedModel:
        """A fresh student; one with `pretraining` begins as a language model of the training file's texts."""
        settings = self.config["students"][name]
        is_pretrained = self.pretraining_mark(name, train) is not None
        return make_student(
            name, settings, self.encoder, seed, self._pretrained(name, train) if is_pretrained else None
        )

    def pretraining_mark(self, name: str, train: str) -> dict[str, Any] | None:
        """What tells one pretrained student from another, made now if it is not there; `None` without pretraining."""
        settings = self.config["students"][name]
        if "pretraining" not in settings:
            return None
        folder = self._pretrained(name, train)
        with claim(self.lock_path(f"pretrained.{name}.{train}"), is_waiting=True):
            if not (folder / MARK).exists():
                config = decoder_config(settings["shape"], self.tokenizer)
                pretrain(config, *self._whole_parts(train), self.formatter, folder, **settings["pretraining"])
        return json.loads((folder / MARK).read_text(encoding="utf-8"))

    def _pretrained(self, name: str, train: str) -> Path:
        return self.folder / "pretrained" / name / train
