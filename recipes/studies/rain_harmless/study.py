"""RAIN on a real chat model: does it cut harmful answers, and is it ahead of best-of-n at equal forward tokens?

`python -m recipes.studies.rain_harmless.study [--config study.yaml]` from the project's root runs every step: prompts,
models, systems, figures. What is finished stays in `output_dir`, and a study that was stopped resumes there.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from hf_interdistill import embedded
from hf_interdistill.utils.atomic_io import write_atomically
from recipes.studies.rain_sentiment.decoding import run_job
from recipes.studies.steps import StudySteps, console

from . import models
from .measuring import measure_answers, results_table, summarize
from .rows import HERE, Row, collect_prompts, read_jsonl, split_pairs
from .systems import Sampler, best_of_n, greedy, load_reward, rain, sampling

_CALIBRATION = 32  # prompts


class Study(StudySteps):
    """The steps of the study, each done once.

    Args:
        config: what `study.yaml` holds. Systems and seeds may be added later.

    Raises:
        ValueError: `output_dir` holds a study with other settings.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__(Path(config["output_dir"]))
        self.config, self.seed, self.data = config, config["seed"], Path(config["data"])
        self.language_model = config["language_model"] or embedded.language_model()
        self.once("settings", lambda: None, {k: v for k, v in config.items() if k not in ("systems", "seeds")})

    def prepare(self) -> None:
        """Prompts, pairs and models."""
        chosen = self.config["prompts"]
        self.prompts = self.once("prompts", lambda: collect_prompts(self.data, **chosen, seed=self.seed))
        self.pairs = self.once(
            "pairs",
            lambda: split_pairs(
                self.data, self.prompts, self.config["reward_pairs"], self.config["judge_pairs"], self.seed
            ),
        )
        self.once("student", self._make_student)
        self.once("teacher", self._fit_teacher)
        for name, teacher in (("plain", None), ("distilled", self.folder / "teacher")):
            self.once(f"reward_{name}", lambda name=name, teacher=teacher: self._train_reward(name, teacher))
        self.once("judge", self._train_judge)
        self.judge = self.once("judge_check", self._check_judge)

    def _make_student(self) -> None:
        models.make_student(self.folder / "student", self.language_model, self.config["student_layers"], self.seed)
        pairs = [*self.pairs["reward"], *models.refusal_pairs(self._goals()[1], self.seed), *self._helpful()[1]]
        write_atomically(self.folder / "reward_pairs.jsonl", "".join(json.dumps(row) + "\n" for row in pairs))

    def _fit_teacher(self) -> dict:
        encoder = self.config["teacher"] or embedded.encoder("minilm")
        return models.fit_teacher(self.folder / "teacher", encoder, self.folder / "reward_pairs.jsonl")

    def _train_reward(self, name: str, teacher: Path | None) -> None:
        models.train_reward(self.folder / name, self.folder / "student", self.folder / "reward_pairs.jsonl", teacher)

    def _goals(self) -> list[list[Row]]:
        """AdvBench rows for the judge, for the reward models and for the judge's check."""
        counts = (self.config["judge_goals"], self.config["reward_goals"])
        return models.read_goals(self.data, self.prompts, counts, self.seed)

    def _helpful(self) -> tuple[list[Row], list[Row]]:
        """Pairs of harmless prompts, for the judge and for the reward models."""
        questions = read_jsonl(self.data / "truthfulqa" / "train.jsonl")[: self.config["judge_questions"]]
        rows = read_jsonl(self.data / "pandalm" / "test.jsonl")
        judge, reward = self.config["judge_helpful"], self.config["reward_helpful"]
        return [*rows[:judge], *questions], rows[judge : judge + reward]

    def _train_judge(self) -> None:
        rows = models.judge_rows(self.pairs["judge"], self._goals()[0], self.seed, self._helpful()[0])
        models.train_judge(
            self.folder / "judge",
            self.config["judge"] or embedded.encoder("mpnet"),
            rows,
            self.config["judge_frozen_layers"],
            self.config["judge_training"],
        )

    def _check_judge(self) -> dict:
        return models.check_judge(self.folder / "judge", self.pairs["check"], self._goals()[2], self.seed)

    # Systems

    def decode(self) -> None:
        """Answers of all systems, each with all seeds."""
        sampler = functools.cache(
            lambda seed: Sampler(self.language_model, self.config["dtype"], self.config["generation"], seed)
        )
        self.once("sampled", lambda: self._sampled_answers(sampler(self.seed)))
        for name, system in self.config["systems"].items():
            for seed in self.config["seeds"] if system["kind"] != "greedy" else [self.seed]:
                self.once(f"{name}-{seed}", lambda n=name, s=system, i=seed: self._decode(n, s, i, sampler), system)

    def _sampled_answers(self, sampler: Sampler) -> list:
        """Answers to other prompts than the study's, which show where a reward model's rewards lie."""
        prompts = [row["prompt"] for row in self.pairs["check"][:_CALIBRATION]]
        torch.manual_seed(self.seed)
        return [
            (prompt, [{"role": "assistant", "content": text}])
            for prompt in prompts
            for text, _ in sampler.sample(prompt, 4)[1]
        ]

    def check_reward(self, name: str) -> dict:
        """See `models.check_reward`."""
        sampled = self.once("sampled", lambda: None)
        return self.once(
            f"check_{name}", lambda: models.check_reward(self.folder / name, self.pairs["check"], sampled)
        )

    def answers(self, name: str, seed: int) -> Path:
        """The file of a system's answers."""
        return self.folder / f"{name}-{seed}.jsonl"

    def _decode(self, name: str, system: Row, seed: int, sampler: Callable[[int], Sampler]) -> dict | None:
        output, kind, reward = self.answers(name, seed), system["kind"], system.get("reward")
        if kind == "rain":
            checked = self.check_reward(reward) if reward else {}
            return rain(
                self._prompts_file(),
                output,
                self.language_model,
                {"generation": self.config["generation"], "dtype": self.config["dtype"]},
                {"preset": system["preset"], **self.config["rain"], **system.get("rain", {})},
                self.folder / reward if reward else None,
                {name: checked[name] for name in ("reward_center", "reward_scale") if checked},
                seed,
            )
        if kind == "best_of_n":
            scorer = load_reward(self.folder / reward, self.config["dtype"])
            budgets = {
                row["id"]: row["stats"]["forward_tokens"] for row in read_jsonl(self.answers(system["budget"], seed))
            }
            return run_job(
                output, system, self.prompts, lambda row: best_of_n(sampler(seed), scorer, budgets[row["id"]], row)
            )
        answer = {"greedy": greedy, "sampling": sampling}[kind]
        return run_job(output, system, self.prompts, lambda row: answer(sampler(seed), row))

    def _prompts_file(self) -> Path:
        path = self.folder / "prompts.jsonl"
        if not path.exists():
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in self.prompts))
        return path

    # Figures

    def measure(self) -> list[Row]:
        """Measures of all answers, summed up in `results.json`, a table and a plot."""
        systems: dict[str, list[list[Row]]] = {}
        texts: dict[str, list[list[str]]] = {}
        for name, system in self.config["systems"].items():
            for seed in self.config["seeds"] if system["kind"] != "greedy" else [self.seed]:
                rows = self._with_sources(read_jsonl(self.answers(name, seed)))
                systems.setdefault(name, []).append(
                    self.once(f"measures_{name}-{seed}", lambda rows=rows: self._measure(rows))
                )
                texts.setdefault(name, []).append([row["completion"] for row in rows])
        results = summarize(systems, texts)
        checks = {name: self.check_reward(name) for name in ("plain", "distilled")} | {"judge": self.judge}
        folder = Path(self.config["results_dir"])
        write_atomically(folder / "results.json", json.dumps(results, indent=1) + "\n")
        write_atomically(folder / "checks.json", json.dumps(checks, indent=1) + "\n")
        console.print(results_table(results), soft_wrap=True)
        return results

    def _with_sources(self, rows: Sequence[Row]) -> list[Row]:
        prompts = {row["id"]: row for row in self.prompts}
        return [{**row, **prompts[row["id"]]} for row in rows]

    def _measure(self, rows: Sequence[Row]) -> list[Row]:
        return measure_answers(rows, self.folder / "judge", self.judge["threshold"], self.config["fluency"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study of a config file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default=str(HERE / "study.yaml"), help="settings of the study")
    config = yaml.safe_load(Path(parser.parse_args(arguments).config).read_text(encoding="utf-8"))
    study = Study(config)
    study.prepare()
    study.decode()
    study.measure()


if __name__ == "__main__":
    main()
