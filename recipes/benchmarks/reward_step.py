"""Step time and peak memory of interaction distillation against TRL's `RewardTrainer` and the naive way.

`python recipes/benchmarks/reward_step.py [--full] [--lengths 256 512 ...] [--data preferences.jsonl] [--output FILE]`

All train the same Llama on the same batch, with gradient checkpointing as TRL sets it by default. On a CPU steps are
timed in turn, ours and theirs, in one process, and memory is the peak resident size of a process for each. On a GPU
each has it to itself, one after the other in one process: seconds, and peak allocation over the steps. Times are
medians. The naive way asks the model for `output_attentions=True`, which needs eager attention and holds layers x
heads x length x length; where that is more than the GPU has, its figures say so.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from datasets import disable_progress_bars
from figures import keep, row, table_of
from hardware import peak_resident_mib
from reward_models import Case, make_data, make_student, make_teacher, make_tokenizer
from rich.console import Console
from trl import RewardConfig, RewardTrainer

from hf_interdistill import InteractionDistillationConfig, InteractionDistillationTrainer, InteractionTeacher

RIVAL = "TRL RewardTrainer"
OURS = {  # settings of the config
    "ours": {"share_prompt": "false"},
    "shared": {"share_prompt": "auto"},
    "shared_plain": {"share_prompt": "true", "alignment_weight": 0.0},
}
METHODS = ("parent", *OURS, "naive")


class NaiveTrainer(RewardTrainer):
    """The obvious way: ask both models for their attentions and compare the last layers' means over heads."""

    teacher: InteractionTeacher
    teacher_inputs: dict[str, torch.Tensor]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs["output_attentions"] = True
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        inputs.pop("output_attentions")
        with torch.no_grad():
            target = self.teacher(**self.teacher_inputs, output_attentions=True).attentions[-1].mean(1)
        maps = outputs.attentions[-1].float().mean(1)
        size = min(maps.shape[-1], target.shape[-1])
        target = target.repeat(2, 1, 1)[:, :size, :size]
        divergence = torch.nn.functional.kl_div((maps[:, :size, :size] + 1e-9).log(), target, reduction="batchmean")
        loss = loss + 0.1 * divergence / size
        return (loss, outputs) if return_outputs else loss


def make_step(method: str, case: Case, folder: str):
    """A function that does one training step of a method."""
    is_gpu = torch.cuda.is_available()
    common = {
        "output_dir": f"{folder}/{method}",
        "per_device_train_batch_size": case.pairs,
        "max_length": None,
        "bf16": is_gpu,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "max_steps": 1,
        "logging_strategy": "no",
        "save_strategy": "no",
    }
    data, tokenizer = make_data(case), make_tokenizer(False)
    if method in OURS:
        trainer = InteractionDistillationTrainer(
            make_student(case, "sdpa"),
            InteractionDistillationConfig(**common, **OURS[method]),
            train_dataset=data,
            processing_class=tokenizer,
            teacher=make_teacher(case),
        )
    else:
        make = NaiveTrainer if method == "naive" else RewardTrainer
        trainer = make(
            make_student(case, "eager" if method == "naive" else "sdpa"),
            RewardConfig(**common),
            train_dataset=data,
            processing_class=tokenizer,
        )
    if method == "naive":
        teacher = make_teacher(case).freeze().to(trainer.args.device)
        teacher.network.encoder.set_attn_implementation("eager")
        trainer.teacher = teacher.network.encoder
        inputs = make_tokenizer(True)(list(data["prompt"]), list(data["chosen"]), return_tensors="pt", padding=True)
        trainer.teacher_inputs = {key: value.to(trainer.args.device) for key, value in inputs.items()}
    trainer.train()  # one step: sets up optimizer, scheduler and model as in a real run
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))

    def step() -> float:
        start = time.perf_counter()
        trainer.training_step(trainer.model, dict(batch), num_items_in_batch=None)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        _wait()
        return time.perf_counter() - start

    step.trainer, step.batch = trainer, batch
    return step


def _wait() -> None:
    """Wait for a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def alignment_seconds(step) -> float:
    """Time of the alignment alone, teacher left out: simulated map, teacher's rows from its queries and keys, loss
    and gradient."""
    trainer, spent = step.trainer, []

    def timed(function: Callable) -> Callable:
        def run(*arguments, **options):
            _wait()  # for the passes before it
            start = time.perf_counter()
            result = function(*arguments, **options)
            _wait()
            spent.append(time.perf_counter() - start)
            return result

        return run

    forward, objective = trainer.teacher.forward, trainer.objective
    trainer.teacher.forward, trainer.objective = timed(forward), timed(objective)
    step()
    trainer.teacher.forward, trainer.objective = forward, objective
    return spent[1] - spent[0]


def measure_times(case: Case, repeats: int, folder: str, methods: Sequence[str]) -> dict[str, float]:
    steps = {method: make_step(method, case, folder) for method in methods}
    times = {method: [] for method in methods}
    for number in range(repeats + 1):
        for method, step in steps.items():
            seconds = step()
            if number:  # the first round warms up
                times[method].append(seconds)
    medians = {method: statistics.median(values) for method, values in times.items()}
    medians["alignment"] = statistics.median(alignment_seconds(steps["ours"]) for _ in range(repeats))
    return medians


def measure_memory(method: str, case: Case) -> float:
    """Peak resident MiB of this process, after three steps."""
    with tempfile.TemporaryDirectory() as folder:
        step = make_step(method, case, folder)
        for _ in range(3):
            step()
    return peak_resident_mib()


def memory_in_own_process(method: str, case: Case) -> float:
    run = subprocess.run(
        [sys.executable, __file__, "--memory-of", method, "--case", json.dumps(case.__dict__)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(run.stdout.strip().splitlines()[-1])


def measure_alone(method: str, case: Case, repeats: int) -> dict[str, float]:
    """On a GPU with nothing else on it: `seconds` of a step, peak `mib` over the steps, seconds of the `alignment`.

    Raises:
        torch.OutOfMemoryError: the GPU has too little memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        step = make_step(method, case, folder)
        step()  # warms up
        torch.cuda.reset_peak_memory_stats()
        figures = {"seconds": statistics.median(step() for _ in range(repeats))}
        figures["mib"] = torch.cuda.max_memory_allocated() / 2**20
        if method == "ours":
            figures["alignment"] = statistics.median(alignment_seconds(step) for _ in range(repeats))
    return figures


def measure_on_gpu(
    case: Case, repeats: int, methods: Sequence[str]
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Seconds and MiB by method, one after the other; `None` where the GPU has too little memory."""
    measured: dict[str, dict[str, float]] = {}
    for method in methods:
        gc.collect()  # trainers hold themselves in circles
        torch.cuda.empty_cache()
        try:
            measured[method] = measure_alone(method, case, repeats)
        except torch.OutOfMemoryError:
            measured[method] = {}
    times = {method: figures.get("seconds") for method, figures in measured.items()}
    times["alignment"] = measured["ours"].get("alignment")
    return times, {method: figures.get("mib") for method, figures in measured.items()}


def measure_case(
    case: Case, repeats: int, methods: Sequence[str] = METHODS, is_memory_wanted: bool = True
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Seconds of a step and of the `alignment`, and peak MiB, by method."""
    if torch.cuda.is_available():
        return measure_on_gpu(case, repeats, methods)
    with tempfile.TemporaryDirectory() as folder:
        times = measure_times(case, repeats, folder, methods)
    return times, {method: memory_in_own_process(method, case) for method in methods if is_memory_wanted}


def run_case(case: Case, repeats: int) -> list[dict]:
    times, memory = measure_case(case, repeats)
    naive = "two passes against output_attentions=True, eager"
    compared = (
        ("reward_step_time", times, "ours", "parent", "s", f"two passes against {RIVAL}"),
        ("reward_step_time", times, "ours", "naive", "s", naive),
        ("shared_prompt_step_time", times, "shared", "parent", "s", f"`auto` against {RIVAL}"),
        ("shared_prompt_step_time", times, "shared_plain", "parent", "s", f"no alignment, `true`, against {RIVAL}"),
        ("alignment_share", times, "alignment", "parent", "s", f"against {RIVAL}'s step"),
        ("reward_step_memory", memory, "ours", "parent", "MiB", f"two passes against {RIVAL}"),
        ("reward_step_memory", memory, "ours", "naive", "MiB", naive),
        ("reward_step_memory", memory, "shared", "parent", "MiB", f"`auto` against {RIVAL}"),
    )
    return [
        row(name, f"{case.setting}, {what}", values[ours], values[rival], unit)
        for name, values, ours, rival, unit, what in compared
    ]


def cases(is_full: bool, data: str | None, lengths: Sequence[int] | None) -> list[Case]:
    if torch.cuda.is_available():
        shape = {"hidden": 1024, "layers": 24, "teacher_hidden": 384, "teacher_layers": 6}
        real = [Case(0, 32, data, **shape)] if data else []
        lengths = (256, 512, 1024, 2048, 4096) if lengths is None else lengths
        return real + [Case(length, max(1, 8192 // length), **shape) for length in lengths]
    tokens = 4096 if is_full else 2048
    if lengths is None:
        lengths = (256, 512, 1024, 2048) if is_full else (256, 512, 1024)
    real = [Case(0, 8, data)] if data else []
    if data and is_full:
        real.append(Case(0, 8, data, teacher_hidden=384, teacher_layers=6))  # a teacher of MiniLM's size
    return real + [Case(length, max(1, tokens // (2 * length))) for length in lengths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true", help="larger batches, more repeats, length 2,048")
    parser.add_argument("--lengths", type=int, nargs="*", help="tokens of prompt and response (none: only `--data`)")
    parser.add_argument("--repeats", type=int, help="steps timed (default 3; 7 with --full; 20 on a GPU)")
    parser.add_argument("--data", help="JSONL of preferences: one more setting, with the lengths of its texts")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/results.json"))
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    disable_progress_bars()
    if arguments.memory_of:
        print(measure_memory(arguments.memory_of, Case(**arguments.case)))
        return
    repeats = arguments.repeats or (20 if torch.cuda.is_available() else 7 if arguments.full else 3)
    console, results = Console(markup=False, emoji=False), []
    for case in cases(arguments.full, arguments.data, arguments.lengths):
        console.print(f"measuring {case.setting} ...")
        results += run_case(case, repeats)
        keep(results, arguments.output)  # case by case: a run that is stopped keeps what it has measured
    console.print(table_of("Reward step", results))
    console.print(f"Kept in {arguments.output}.")


if __name__ == "__main__":
    main()
