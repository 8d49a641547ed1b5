"""A workshop of tiny models, data and recipes, and ways to run, kill and compare commands in it."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, STUDENT_FAMILIES, build_encoder, build_student, tokenizer_of
from safetensors.torch import load_file

from hf_interdistill.cli import main

TOPICS = ("bread", "milk", "water", "wine", "dogs", "cats", "rain", "snow")
GOOD = ("Here is how to do it:", "You can try this:", "The best way is")
BAD = ("No idea about", "Go away with your", "Why would I know", "Ask again about")
PAIRS = [
    {"prompt": f"How do I find {topic} {number}?", "chosen": f" {good} {topic}.", "rejected": f" {bad} {topic}."}
    for number, (topic, good, bad) in enumerate((t, g, b) for t in TOPICS for g in GOOD for b in BAD)
]
PICTURE = "hf_interdistill.hub.publishing.draw_example_maps"
QUIET = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "seed": 7}
# A key's bias has no gradient but rounding (softmax ignores it); a small epsilon would make full steps of it, of
# random sign, and runs that are equal up to rounding would part.
STEADY = {"adam_epsilon": 1e-4}
# `accelerate launch --cpu --num_processes 2` would start one process (two need MPI): the recipe's launcher starts two.
ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--config_file", str(ROOT / "recipes" / "accelerate_configs" / "ddp.yaml")),
    *("--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"),
)


class Workshop:
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
        rain = {"iterations": 4, "min_visits": 2, "candidates": 3, "rollout_max_tokens": 4, "prompts_in_flight": 2}
        rain = {**rain, "seed": 3, **changes.pop("rain", {})}
        settings = {
            "model": str(self.path("lm")),
            "prompts": str(self.path("prompts.jsonl")),
            "output": str(self.path(output)),
            "generation": {"max_new_tokens": 4, "pad_token_id": 3},
            "scorer": "trust.scorers:short",
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


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Models this small only wait for each other's threads, and a forked process must have one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def straight(one_thread, tmp_path_factory):
    """A workshop with runs to which nothing happened: `teacher`, `rm`, `plain` (no teacher), `straight.jsonl`."""
    workshop = Workshop(tmp_path_factory.mktemp("straight") / "workshop")
    workshop.add_language_model(prompts=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PICTURE, lambda *args: None)
        commands = (workshop.teacher(), workshop.reward(), workshop.plain("plain"), workshop.rain("straight.jsonl"))
        assert [main(command) for command in commands] == [0, 0, 0, 0]
    return workshop


@pytest.fixture
def workshop(straight, tmp_path):
    """A copy of `straight` for a test to work in."""
    copied = copy.copy(straight)
    copied.folder = tmp_path / "workshop"
    shutil.copytree(straight.folder, copied.folder)
    return copied


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """The picture of maps on the model card takes longer than all the training here."""
    monkeypatch.setattr(PICTURE, lambda *args: None)


def forked(action: Callable[[], int | None], seconds: int = 120) -> tuple[int, str]:
    """Run something in a process of its own that may be killed or limited.

    A fork costs no import. It is safe here: one thread, and on the CPU autograd starts none of its own.

    Returns:
        The exit status, or minus the signal that ended it; and what was printed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(seconds)
            os.close(reading)
            sys.stdout = sys.stderr = os.fdopen(writing, "w")  # not a file, which could be too large for a limit
            torch.set_num_threads(1)
            status = action() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as output:
        printed = output.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), printed


def killed(command: list[str], spot: Callable[[], None]) -> None:
    """Run a command in a process of its own that `spot` arranges to kill, as `kill -9` does."""

    def action():
        spot()
        return main(command)

    status, printed = forked(action)
    assert status == -signal.SIGKILL, f"it ended with {status} before it could be killed: {printed[-3000:]}"


def kill_now(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def at_step(step: int, folder: str = "") -> None:
    """Kill a training, of a run whose output folder ends so, when a step has ended and before anything is saved."""
    from transformers.trainer_callback import CallbackHandler

    original = CallbackHandler.on_step_end

    def counted(self, args, state, control):
        if state.global_step == step and args.output_dir.endswith(folder):
            kill_now()
        return original(self, args, state, control)

    CallbackHandler.on_step_end = counted


def at_call(owner, name: str, number: int, action: Callable = kill_now, *, is_after: bool = False) -> None:
    """Replace a function so that its call with this number (from 1) does something else, or something after it."""
    original, calls = getattr(owner, name), [0]

    def counted(*args, **kwargs):
        calls[0] += 1
        if calls[0] != number:
            return original(*args, **kwargs)
        if is_after:
            original(*args, **kwargs)
        return action(*args, **kwargs)

    setattr(owner, name, counted)


def launched(commands: list[list[str]], *launcher: str, **environment) -> subprocess.CompletedProcess:
    """Run commands one after the other in two processes, as `accelerate launch` starts them."""
    return subprocess.run(
        [sys.executable, *ACCELERATE, *launcher, str(ROOT / "tests" / "trust" / "commands.py"), json.dumps(commands)],
        env=surroundings(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )


def surroundings(**more) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}
