"""Search strategies side by side: what each makes of the same forward tokens, by two reward models.

`python -m recipes.studies.search_strategies.study [--config study.yaml]` from the project's root trains the reward
models, answers the prompts with every system, and writes the table. What is finished stays in `output_dir`, and a
study that was stopped resumes there.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_interdistill import RainConfig, RainDecoder, RewardScorer, embedded
from hf_interdistill.rain.scorers.cached_reward import CachedRewardScorer
from hf_interdistill.scoring.prompts import tokenize_prompt
from hf_interdistill.utils.atomic_io import write_atomically
from recipes.studies.rain_harmless.models import check_reward, make_student, train_reward
from recipes.studies.rain_harmless.rows import Row, read_jsonl
from recipes.studies.rain_harmless.systems import Sampler, greedy, sampling
from recipes.studies.steps import StudySteps

from .table import differences_table, results_table

HERE = Path(__file__).parent
_LATER = ("systems", "differences", "results_dir")  # what may change in a study that is there


def split_rows(data: Path, prompts: dict[str, int], pairs: dict[str, int], seed: int) -> dict[str, list[Row]]:
    """Prompts and pairs by use; no prompt serves twice.

    Args:
        data: folder with `train.jsonl` and `test.jsonl`. prompts, pairs: how many of each, as in `study.yaml`.
        seed: of the split.
    """
    rng = random.Random(seed)
    parts: dict[str, list[Row]] = {}
    rest = {name: read_jsonl(data / f"{name}.jsonl") for name in ("test", "train")}
    taken: set[str] = set()
    for rows in rest.values():
        rng.shuffle(rows)
    uses = [(name, "test", prompts[name], prompts["longest"]) for name in ("test", "tuning", "calibration")]
    uses += [("check", "test", pairs["check"], pairs["longest"])]
    uses += [(name, "train", pairs[name], pairs["longest"]) for name in ("steering", "held_out")]
    for use, source, count, longest in uses:
        chosen: dict[str, Row] = {}
        for row in rest[source]:
            key, whole = json.dumps(row["prompt"]), json.dumps(row)
            length = len(key if use in prompts else whole)
            if len(chosen) < count and key not in taken and length <= longest:
                chosen.setdefault(key, row)
        taken |= set(chosen)
        parts[use] = list(chosen.values())
    return parts


class Study(StudySteps):
    """The steps of the study, each done once.

    Args:
        config: what `study.yaml` holds.

    Raises:
        ValueError: `output_dir` holds a study with other settings.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__(Path(config["output_dir"]))
        self.config, self.seed = config, config["seed"]
        self.language_model = config["language_model"] or embedded.language_model()
        self.once("settings", lambda: None, {k: v for k, v in config.items() if k not in _LATER})
        self.rows = split_rows(Path(config["data"]), config["prompts"], config["pairs"], self.seed)

    def run(self) -> list[Row]:
        """All steps; returns one row of figures for each system."""
        for number, name in enumerate(("steering", "held_out")):
            self.once(f"train {name}", lambda name=name, seed=self.seed + number: self._train(name, seed))
        self.sampler = Sampler(self.language_model, self.config["dtype"], self._generation(), self.seed)
        self.sampled = self.once("sampled", self._sampled)
        self.checks = {name: self._check(name) for name in ("steering", "held_out")}
        self.weights = {name: self._tune(name) for name in ("args", "rad")}
        measures = {}
        for name, system in {"greedy": greedy, "sampling": sampling, **self.config["systems"]}.items():
            settings = system if isinstance(system, dict) else None
            found = self.once(name, lambda s=system: self._answer(s, self.rows["test"]), settings)
            measures[name] = self.once(f"measures {name}", lambda found=found: self._measure(found["answers"]))
            timed = self.once(f"time {name}", lambda s=system: self._answer(s, self.rows["tuning"])["seconds"])
            measures[name]["seconds"] = timed
        figures = {"checks": self.checks, "weights": self.weights, "systems": measures}
        write_atomically(self.folder / "results.json", json.dumps(figures, indent=1) + "\n")
        folder = Path(self.config["results_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        rows, text = results_table(measures, self.config["resamples"], self.seed)
        text += differences_table(measures, self.config["differences"], self.config["resamples"], self.seed)
        write_atomically(folder / "table.md", text)
        print(text)
        print(json.dumps({"checks": self.checks, "weights": self.weights}, indent=1))
        return rows

    def _generation(self) -> dict[str, Any]:
        return {"max_new_tokens": self.config["max_new_tokens"], **self.config["sampling"]}

    # Reward models

    def _train(self, name: str, seed: int) -> None:
        student, pairs = self.folder / f"student_{name}", self.folder / f"{name}.jsonl"
        make_student(student, self.language_model, self.config["student_layers"], seed)
        write_atomically(pairs, "".join(json.dumps(row) + "\n" for row in self.rows[name]))
        train_reward(self.folder / name, student, pairs, None)

    def _sampled(self) -> list:
        """Answers to other prompts than the study's, which show where rewards lie."""
        torch.manual_seed(self.seed)
        return [
            (row["prompt"], [{"role": "assistant", "content": text}])
            for row in self.rows["calibration"]
            for text, _ in self.sampler.sample(row["prompt"], 4)[1]
        ]

    def _check(self, name: str) -> dict:
        """Accuracy on held-out pairs, and center and scale of the rewards of sampled answers."""
        folder = self.folder / name
        return self.once(f"check {name}", lambda: check_reward(folder, self.rows["check"], self.sampled))

    # Answers

    def _answer(self, system: Any, rows: Sequence[Row]) -> dict:
        """Answers of a system, and seconds of the processor a prompt (without loading)."""
        if isinstance(system, dict):
            return self._search(self._weighted(system), rows)
        start = time.process_time()
        answers = [system(self.sampler, {"id": number, **row}) for number, row in enumerate(rows)]
        return {"answers": answers, "seconds": (time.process_time() - start) / len(rows)}

    def _weighted(self, system: dict[str, Any]) -> dict[str, Any]:
        weight = self.weights.get(system.get("strategy", "rain"))
        return system if weight is None else {**system, "reward_weight": weight}

    def _tune(self, strategy: str) -> float:
        """The weight of the highest steering reward on the tuning prompts."""
        system = next(s for s in self.config["systems"].values() if s.get("strategy") == strategy)

        def reward(weight: float) -> float:
            found = self._search({**system, "reward_weight": weight}, self.rows["tuning"])
            values = self._rewards("steering", self.rows["tuning"], found["answers"])
            return float(np.mean(values))

        tried = {w: self.once(f"tune {strategy} {w}", lambda w=w: reward(w)) for w in self.config["weights"]}
        return max(tried, key=tried.__getitem__)

    def _search(self, system: dict[str, Any], rows: Sequence[Row]) -> dict:
        """Answers of a strategy; see `_answer`."""
        check = self.checks["steering"]
        scorer = CachedRewardScorer(
            RewardScorer.from_pretrained(str(self.folder / "steering")),
            scale=check["reward_scale"],
            center=check["reward_center"],
        )
        tokenizer = AutoTokenizer.from_pretrained(self.language_model, padding_side="left")
        dtype = getattr(torch, self.config["dtype"])
        model = AutoModelForCausalLM.from_pretrained(self.language_model, dtype=dtype).eval()
        settings = {"seed": self.seed, "max_batch_size": self.config["max_batch_size"], **system}
        if settings.get("strategy") not in ("args", "rad"):
            settings["sample_top_k"] = self.config["sampling"]["top_k"]
        config = RainConfig.from_dict(settings)
        ids = [{"input_ids": tokenize_prompt(tokenizer, row["prompt"])[0].tolist()} for row in rows]
        inputs = tokenizer.pad(ids, return_tensors="pt")
        start = time.process_time()
        output = model.generate(
            **inputs,
            custom_generate=RainDecoder(tokenizer, config, scorer),
            rain_prompts=[row["prompt"] for row in rows],
            **self._generation(),
            return_dict_in_generate=True,
        )
        seconds = (time.process_time() - start) / len(rows)
        answers = [{"completion": r.text, "tokens": r.tokens, "stats": r.stats} for r in output.rain]
        return {"answers": answers, "seconds": seconds}

    # Measures

    def _rewards(self, name: str, rows: Sequence[Row], answers: Sequence[Row]) -> np.ndarray:
        """Rewards of answers, in standard deviations from the mean of sampled ones."""
        scorer = RewardScorer.from_pretrained(str(self.folder / name))
        texts = [[{"role": "assistant", "content": each["completion"]}] for each in answers]
        check = self.checks[name]
        rewards = np.array(scorer([row["prompt"] for row in rows], texts))
        return (rewards - check["reward_center"]) / check["reward_scale"]

    @torch.no_grad()
    def _measure(self, answers: Sequence[Row]) -> dict[str, Any]:
        """Per prompt: both rewards, nats per token under the chat model, and forward tokens."""
        nats = []
        for row, answer in zip(self.rows["test"], answers, strict=True):
            prompt = tokenize_prompt(self.sampler.tokenizer, row["prompt"])[0]
            tokens = torch.tensor(answer["tokens"])
            logits = self.sampler.model(torch.cat([prompt, tokens])[None]).logits[0, len(prompt) - 1 : -1].float()
            nats.append(torch.nn.functional.cross_entropy(logits, tokens).item())
        return {
            **{name: self._rewards(name, self.rows["test"], answers).tolist() for name in ("steering", "held_out")},
            "nats": nats,
            "forward_tokens": [each["stats"]["forward_tokens"] for each in answers],
        }


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run the study of a config file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default=str(HERE / "study.yaml"), help="settings of the study")
    config = yaml.safe_load(Path(parser.parse_args(arguments).config).read_text(encoding="utf-8"))
    return Study(config).run()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
