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

from .rows import Row, drawn, read_lines, read_rows, with_flipped_labels, with_planted_phrase, write_rows
from .table import accuracy_by_test, summarize, write_tables

HERE = Path(__file__).parent
FITTED = "fitted"  # the teacher of arms that name no other
CLEAN, SCORED = "clean rows", "scored rows"  # before labels are flipped; with the teacher's probabilities as labels
PLACES = ("train", "pairs", "flipped", "planted", "test_pairs")  # what decides the rows of a group


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
        settings = {"test_pairs": self.config["test_pairs"], **self.config["groups"][group]}
        own = {name: settings.get(name) for name in PLACES}
        own |= {name: self.config[name] for name in ("data", "longest", "phrase", "data_seed")}
        counts = self.once(f"{group} rows", lambda: self._write_rows(group, settings), own)
        folder = self.folder / group
        arms = {INTERACTION: {}, **{arm: self.config["arms"][arm] for arm in settings["arms"]}}
        scored = read_lines(folder / "rows" / "test.jsonl")
        teachers = {}
        for name in dict.fromkeys(arm.get("teacher_model", FITTED) for arm in arms.values()):
            fitting = own | self._teacher_settings(name) | {"smollm2": self.language_model, "minilm": self.encoder}
            teachers[name] = self.once(
                f"{group} teacher {name}", lambda name=name: self._fit_teacher(group, name, counts["tests"]), fitting
            )
        for arm in arms.values():
            if arm.get("rows") == SCORED:
                self.once(f"{group} rows {SCORED}", lambda: self._write_scored_rows(group), own)
        recipes = {name: self._recipe(group, arm) for name, arm in arms.items()}
        options = {"batch_size": self.config["scoring_batch_size"], "resamples": self.config["resamples"]}
        options |= {"seeds": settings["seeds"], "diagnosis_pairs": 0}
        found = compare(recipes.pop(INTERACTION), CompareConfig(output=str(folder), **options), recipes=recipes)
        models = {each.name: each.explained for each in found.models}
        tests = summarize(
            folder / "runs", list(models), list(found.seeds), counts["tests"], scored, self.config["resamples"]
        )
        figures = {"rows": counts, "teachers": teachers, "models": models, "tests": tests, "context": {}}
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
        if settings.get("pairs"):
            training = drawn(training, settings["pairs"], seed)
        tests = {}
        for name, count in settings["test_pairs"].items():
            rows = read_rows(self.data / name / "test.jsonl", self._is_short)
            tests[name] = drawn(rows, count, seed, apart_from=training)
        planted = tests[settings["train"]][: phrase["pairs"]]
        tests["phrase on rejected"] = with_planted_phrase(planted, phrase["text"], 0.0, seed)
        folder = self.folder / group
        write_rows(folder / CLEAN / "train.jsonl", training)
        if share := settings.get("flipped"):
            training = with_flipped_labels(training, share, seed)
        if settings.get("planted"):
            training = with_planted_phrase(training, phrase["text"], phrase["share"], seed)
        write_rows(folder / "rows" / "train.jsonl", training)
        write_rows(folder / "rows" / "test.jsonl", [row for rows in tests.values() for row in rows])
        return {"train": len(training), "tests": {name: len(rows) for name, rows in tests.items()}}

    def _is_short(self, row: Row) -> bool:
        texts = [self.formatter.encode(row["prompt"], row[side]) for side in ("chosen", "rejected")]
        return max(map(len, texts)) <= self.config["longest"]

    def _fit_teacher(self, group: str, name: str, tests: dict[str, int]) -> dict[str, Any]:
        """Fit a teacher of the group; returns its accuracy on what was held out from its fit, and on each test."""
        settings = self._teacher_settings(name)
        source, rows = settings.pop("encoder"), settings.pop("rows")
        folder = self.folder / group / "teachers" / name
        teacher = InteractionTeacher.from_pretrained(
            {"minilm": self.encoder, "smollm2": self.language_model}.get(source) or embedded.encoder(source),
            max_length=settings["teacher_max_length"],
            **settings.pop("model_init_kwargs", {}),
        )
        metrics = None
        if rows is None:
            teacher.save_pretrained(str(folder))
        else:
            args = InteractionTeacherConfig(output_dir=str(folder), **settings)
            pairs = read_lines(self.folder / group / rows / "train.jsonl")
            metrics = teacher.fit(pairs, str(folder), args=args, resume_from_checkpoint=True)
        scored = read_lines(self.folder / group / "rows" / "test.jsonl")
        margins = teacher.score_pairs(scored, is_progress_shown=False).mean(dim=1).numpy()
        return {"held out": metrics, "tests": accuracy_by_test(margins, tests, scored)}

    def _teacher_settings(self, name: str) -> dict[str, Any]:
        default = {"encoder": "minilm", "rows": "rows"}
        return default | _read("teacher.yaml") | self.config["teacher"] | self.config["teachers"][name]

    def _write_scored_rows(self, group: str) -> None:
        """The training rows with the probability that the teacher gives to their label."""
        folder = self.folder / group
        rows = read_lines(folder / "rows" / "train.jsonl")
        teacher = InteractionTeacher.from_pretrained(str(folder / "teachers" / FITTED))
        margins = teacher.score_pairs(rows, is_progress_shown=False).mean(dim=1).double()
        given = margins.sigmoid().clamp(0.001, 0.999).tolist()
        labeled = [{**row, "preference_probability": each} for row, each in zip(rows, given, strict=True)]
        write_rows(folder / SCORED / "train.jsonl", labeled)

    def _recipe(self, group: str, arm: dict[str, Any]) -> dict[str, Any]:
        settings = _read("reward.yaml") | self.config["reward"] | arm
        folder, rows = self.folder / group, settings.pop("rows", "rows")
        places = {"dataset_name": str(folder / rows), "model_name_or_path": self.language_model}
        if settings["alignment_weight"]:
            name = settings.get("teacher_model", FITTED)
            places |= {"teacher_model": str(folder / "teachers" / name), "teacher_cache": str(folder / "maps" / name)}
        return settings | places

    def _context(self, group: str, arm: str) -> dict[str, Any]:
        """Whether the first seed's model reads the prompt, by the measures of `diagnose`."""
        seed = (_read("reward.yaml") | self.config["reward"])["seed"]
        size = self.config["scoring_batch_size"]
        model = RewardScorer.from_pretrained(
            str(self.folder / group / "runs" / arm / f"seed-{seed}"), batch_size=size, dtype="float32"
        )
        rows = read_lines(self.folder / group / "rows" / "test.jsonl")[: self.config["context"]["pairs"]]
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
