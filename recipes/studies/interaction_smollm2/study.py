"""Does interaction distillation help a real decoder? SmolLM2's first 12 layers, with clean and with flipped labels.

`python -m recipes.studies.interaction_smollm2.study [--groups NAME ...]` from the project's root: rows, teachers, one
`compare` for each group, and the tables. What is finished stays in `output_dir`, and a study that was stopped resumes
there. Two processes may run different groups.
"""

from __future__ import annotations

import argparse
import fcntl
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoTokenizer

from hf_interdistill import CompareConfig, InteractionTeacher, RewardScorer, compare, embedded
from hf_interdistill.comparison.config import INTERACTION
from hf_interdistill.diagnostics.config import DiagnosisConfig
from hf_interdistill.diagnostics.diagnosis import diagnose
from hf_interdistill.interaction.teacher.config import InteractionTeacherConfig
from hf_interdistill.scoring.formatting import RewardFormatter
from hf_interdistill.utils.atomic_io import write_atomically
from recipes.studies.steps import StudySteps

from .rows import Row, drawn, read_rows, with_flipped_labels, with_planted_phrase, write_rows
from .table import summarize, write_tables

HERE = Path(__file__).parent
UNTRAINED = "untrained"  # an encoder that was fitted on nothing, as the teacher


class Study(StudySteps):
    """The steps of the study, each done once.

    Args:
        config: what `study.yaml` holds.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__(Path(config["output_dir"]))
        self.config, self.data = config, Path(config["data"])
        self.language_model = config["language_model"] or embedded.language_model()
        self.encoder = config["encoder"] or embedded.encoder("minilm")
        self.formatter = RewardFormatter(AutoTokenizer.from_pretrained(self.language_model))

    def run(self, group: str) -> None:
        """Everything of one group. Its figures are written before the context is measured, and again afterwards."""
        settings = self.config["groups"][group]
        own = {name: settings.get(name) for name in ("train", "flipped", "planted")}
        own |= {name: self.config[name] for name in ("data", "longest", "test_pairs", "phrase", "data_seed")}
        counts = self.once(f"{group} rows", lambda: self._write_rows(group, settings), own)
        fitting = own | self._teacher_settings() | {"encoder": self.config["encoder"]}
        teacher = self.once(f"{group} teacher", lambda: self._fit_teacher(group), fitting)
        recipe = self._recipe(group, INTERACTION)
        others = {arm: self._recipe(group, arm) for arm in settings["arms"]}
        folder = self.folder / group
        options = {"batch_size": self.config["scoring_batch_size"], "resamples": self.config["resamples"]}
        options |= {"seeds": settings["seeds"], "diagnosis_pairs": 0}
        found = compare(recipe, CompareConfig(output=str(folder), **options), recipes=others)
        models = {each.name: each.explained for each in found.models}
        scored = [json.loads(line) for line in (folder / "rows" / "test.jsonl").open(encoding="utf-8")]
        tests = summarize(
            folder / "runs", list(models), list(found.seeds), counts["tests"], scored, self.config["resamples"]
        )
        figures = {"rows": counts, "teacher": teacher, "models": models, "tests": tests, "context": {}}
        self._write(group, figures)
        for arm in self.config["context"]["arms"]:
            figures["context"][arm] = self.once(
                f"{group} context {arm}", lambda arm=arm: self._context(group, arm), self.config["context"]["pairs"]
            )
        self._write(group, figures)

    def _write(self, group: str, figures: dict[str, Any]) -> None:
        """Keep a group's figures, and write the tables of all groups that have theirs."""
        with (self.folder / ".lock").open("w") as lock:  # another process may write the tables too
            fcntl.flock(lock, fcntl.LOCK_EX)
            write_atomically(self.folder / group / "figures.json", json.dumps(figures, indent=1))
            paths = {name: self.folder / name / "figures.json" for name in self.config["groups"]}
            found = {name: json.loads(path.read_text("utf-8")) for name, path in paths.items() if path.exists()}
            write_tables(Path(self.config["results_dir"]) / "table.md", found)

    def _write_rows(self, group: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Training rows, and all tests one after the other; returns their numbers."""
        seed, phrase = self.config["data_seed"], self.config["phrase"]
        training = read_rows(self.data / settings["train"] / "train.jsonl", self._is_short)
        tests = {}
        for name, count in self.config["test_pairs"].items():
            rows = read_rows(self.data / name / "test.jsonl", self._is_short)
            tests[name] = drawn(rows, count, seed, apart_from=training)
        planted = tests[settings["train"]][: phrase["pairs"]]
        tests["phrase on rejected"] = with_planted_phrase(planted, phrase["text"], 0.0, seed)
        if share := settings.get("flipped"):
            training = with_flipped_labels(training, share, seed)
        if settings.get("planted"):
            training = with_planted_phrase(training, phrase["text"], phrase["share"], seed)
        folder = self.folder / group / "rows"
        write_rows(folder / "train.jsonl", training)
        write_rows(folder / "test.jsonl", [row for rows in tests.values() for row in rows])
        return {"train": len(training), "tests": {name: len(rows) for name, rows in tests.items()}}

    def _is_short(self, row: Row) -> bool:
        texts = [self.formatter.encode(row["prompt"], row[side]) for side in ("chosen", "rejected")]
        return max(map(len, texts)) <= self.config["longest"]

    def _fit_teacher(self, group: str) -> dict[str, Any]:
        """Fit the group's teacher on its training rows, and keep the encoder as it comes beside it."""
        settings = self._teacher_settings()
        folder = self.folder / group / "teachers"
        length = settings["teacher_max_length"]
        InteractionTeacher.from_pretrained(self.encoder, max_length=length).save_pretrained(str(folder / UNTRAINED))
        rows = [json.loads(line) for line in (self.folder / group / "rows" / "train.jsonl").open(encoding="utf-8")]
        teacher = InteractionTeacher.from_pretrained(self.encoder, max_length=length)
        args = InteractionTeacherConfig(output_dir=str(folder / "fitted"), **settings)
        return teacher.fit(rows, str(folder / "fitted"), args=args, resume_from_checkpoint=True)

    def _teacher_settings(self) -> dict[str, Any]:
        return _read("teacher.yaml") | self.config["teacher"]

    def _recipe(self, group: str, arm: str) -> dict[str, Any]:
        settings = _read("reward.yaml") | self.config["reward"] | self.config["arms"].get(arm, {})
        kind = UNTRAINED if settings.get("teacher_model") == UNTRAINED else "fitted"
        folder = self.folder / group
        places = {"dataset_name": str(folder / "rows"), "model_name_or_path": self.language_model}
        if settings["alignment_weight"]:
            places |= {"teacher_model": str(folder / "teachers" / kind), "teacher_cache": str(folder / "maps" / kind)}
        return settings | places

    def _context(self, group: str, arm: str) -> dict[str, Any]:
        """Whether the first seed's model reads the prompt, by the measures of `diagnose`."""
        seed = self._recipe(group, arm)["seed"]
        size = self.config["scoring_batch_size"]
        model = RewardScorer.from_pretrained(
            str(self.folder / group / "runs" / arm / f"seed-{seed}"), batch_size=size, dtype="float32"
        )
        path = self.folder / group / "rows" / "test.jsonl"
        rows = [json.loads(line) for line in path.open(encoding="utf-8")][: self.config["context"]["pairs"]]
        found = diagnose(model, rows, DiagnosisConfig(batch_size=size), name=arm)
        return {
            "swapped prompt": _bounds(found.swapped_prompt.own),
            "early context": _bounds(found.early_context.first),
            "late context": _bounds(found.early_context.last),
        }


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((HERE / name).read_text(encoding="utf-8"))


def _bounds(estimate) -> list[float]:
    return [estimate.value, estimate.low, estimate.high]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default=str(HERE / "study.yaml"), help="settings of the study")
    parser.add_argument("--groups", nargs="+", help="groups to run, of `groups` in the settings; default: all")
    args = parser.parse_args(arguments)
    config = yaml.safe_load(Path(args.config).read_text(encoding="utf-8"))
    names = args.groups or list(config["groups"])
    if unknown := set(names) - set(config["groups"]):
        raise ValueError(f"There is no group {', '.join(sorted(unknown))}; there are {', '.join(config['groups'])}.")
    study = Study(config)
    for name in names:
        study.run(name)


if __name__ == "__main__":
    main()
