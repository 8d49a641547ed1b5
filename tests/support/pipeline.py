"""A pipeline of tiny models, data and recipes for commands."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from support.models import STUDENT_FAMILIES, build_encoder, build_student
from support.tokenizers import tokenizer_of

TOPICS = ("bread", "milk", "water", "wine", "dogs", "cats", "rain", "snow")
GOOD = ("Here is how to do it:", "You can try this:", "The best way is")
BAD = ("No idea about", "Go away with your", "Why would I know", "Ask again about")
PAIRS = [
    {"prompt": f"How do I find {topic} {number}?", "chosen": f" {good} {topic}.", "rejected": f" {bad} {topic}."}
    for number, (topic, good, bad) in enumerate((t, g, b) for t in TOPICS for g in GOOD for b in BAD)
]
QUIET = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "seed": 7}
# A key's bias has no gradient but rounding (softmax ignores it); a small epsilon would make full steps of it, of
# random sign, and runs that are equal up to rounding would part.
STEADY = {"adam_epsilon": 1e-4}


class Pipeline:
    """A folder with `data` (32 and 13 pairs), `student`, `encoder` (no dropout), `lm`, and recipes that use them."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "data").mkdir(parents=True)
        for name, part in (("train", PAIRS[:64:2]), ("test", PAIRS[64:77])):
            self.write_rows(f"data/{name}.jsonl", part)
        build_student().save_pretrained(folder / "student")
        model, tokenizer = build_encoder(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model.save_pretrained(folder / "encoder")
        tokenizer.save_pretrained(folder / "encoder")
        tokenizer_of("bytes").save_pretrained(folder / "student")

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    def write_rows(self, name: str, rows: list[dict]) -> str:
        self.path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(self.path(name))

    def teacher(self, output: str = "teacher", **changes) -> list[str]:
        """The command that trains a teacher: two epochs of each stage, three steps an epoch."""
        return self._command(
            "teacher",
            output,
            {
                "teacher_model": str(self.path("encoder")),
                "teacher_max_length": 128,
                "warm_start_epochs": 2,
                "num_train_epochs": 2,
                "eval_fraction": 0.25,
                "evals_per_epoch": 2,
                "per_device_train_batch_size": 8,
                "learning_rate": 1e-3,
                "early_stopping_patience": 9,
                **changes,
            },
        )

    def reward(self, output: str = "rm", **changes) -> list[str]:
        """The command that trains a reward model: six steps of eight pairs, a checkpoint after every other one."""
        return self._command(
            "reward",
            output,
            {
                "model_name_or_path": str(self.path("student")),
                "teacher_model": str(self.path("teacher")),
                "alignment_weight": 1.0,
                "bf16": False,
                "max_steps": 6,
                "learning_rate": 1e-3,
                "per_device_train_batch_size": 8,
                "per_device_eval_batch_size": 4,
                "save_strategy": "steps",
                "save_steps": 2,
                **changes,
            },
        )

    def plain(self, output: str, **changes) -> list[str]:
        """The same without a teacher, for where only the run is of interest."""
        return self.reward(output, alignment_weight=0, **changes)

    def rain(self, output: str = "answers.jsonl", **changes) -> list[str]:
        """The command that searches for the prompts of `prompts.jsonl`."""
        rain = {"iterations": 4, "min_visits": 2, "candidates": 3, "rollout_max_tokens": 4, "max_batch_size": 2}
        rain = {**rain, "seed": 3, **changes.pop("rain", {})}
        settings = {
            "model": str(self.path("lm")),
            "prompts": str(self.path("prompts.jsonl")),
            "output": str(self.path(output)),
            "generation": {"max_new_tokens": 4, "pad_token_id": 3},
            "scorer": "support.job_scorers:short",
            "rain": rain,
        }
        return self._write("rain", f"{Path(output).stem}.yaml", {**settings, **changes})

    def add_language_model(self, prompts: int) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, set_seed

        set_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **STUDENT_FAMILIES["llama"]))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(8.0)
        model.save_pretrained(self.path("lm"))
        tokenizer_of("bytes").save_pretrained(self.path("lm"))
        rows = [{"id": f"row {number}", "prompt": row["prompt"]} for number, row in enumerate(PAIRS[:prompts])]
        self.write_rows("prompts.jsonl", rows)

    def _command(self, name: str, output: str, settings: dict) -> list[str]:
        own = {"dataset_name": str(self.path("data")), "output_dir": str(self.path(output))}
        return self._write(name, f"{name}-{output}.yaml", {**own, **QUIET, **STEADY, **settings})

    def _write(self, command: str, name: str, settings: dict) -> list[str]:
        self.path(name).write_text(yaml.safe_dump(settings), encoding="utf-8")
        return [command, "--config", str(self.path(name))]

    def log(self, output: str, key: str = "loss") -> list[float]:
        """What a run logged, by its last checkpoint."""
        last = max(self.path(output).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        history = json.loads((last / "trainer_state.json").read_text())["log_history"]
        return [float(row[key]) for row in history if key in row]

    def weights(self, output: str) -> dict[str, torch.Tensor]:
        """A finished run's weights; of a teacher with its score head."""
        found = {path.name: load_file(path) for path in self.path(output).glob("*.safetensors")}
        return {f"{file}:{name}": value for file, part in found.items() for name, value in part.items()}

    def student_names(self) -> set[str]:
        """Names of the student's own weights: what may be in a checkpoint."""
        return load_file(self.path("student", "model.safetensors")).keys()

    def farthest(self, one: str, other: str) -> float:
        """The largest difference between two runs' weights."""
        first, second = self.weights(one), self.weights(other)
        assert first.keys() == second.keys() and len(first) > 10
        return max(float((value - second[name]).abs().max()) for name, value in first.items())

    def answers(self, output: str = "answers.jsonl") -> list[tuple]:
        lines = self.path(output).read_text(encoding="utf-8").splitlines()
        return [(row["id"], row["completion"], row["tokens"]) for row in map(json.loads, lines)]
