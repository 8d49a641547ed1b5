"""Long runs in one process (`make soak`): memory stays flat, no file stays open, the end is as quick as the start.

Memory and open files are asserted. Throughput is only printed, for a busy machine would fail a limit. It is printed
twice: per processor second, and relative to a fixed piece of work, which slows down with the machine.
`SOAK_STEPS` and `SOAK_PROMPTS` make it shorter or longer.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import psutil
import pytest
import torch
from datasets import Dataset
from support.models import build_student
from support.pipeline import PAIRS, STEADY, Pipeline
from support.tokenizers import tokenizer_of
from transformers import TrainerCallback

from hf_interdistill import InteractionDistillationConfig, InteractionDistillationTrainer, InteractionTeacher
from hf_interdistill.rain.api.jobs import RainJobConfig, run_rain_job
from hf_interdistill.utils.jsonl_jobs import JsonlJob

pytestmark = [pytest.mark.soak, pytest.mark.slow]
STEPS, PROMPTS = int(os.environ.get("SOAK_STEPS", "2000")), int(os.environ.get("SOAK_PROMPTS", "500"))
GROWTH_MIB = 8  # over the last three quarters: less than one copy of all the weights and states here would take a run


_FACTORS = torch.randn(96, 96), torch.randn(96, 96)


def fixed_work() -> None:
    """About 10 ms of what the long runs are made of: small products and the interpreter's own work."""
    left, right = _FACTORS
    for _ in range(150):
        torch.tanh(left @ right).sum().item()
        {str(number): number for number in range(40)}


@dataclass
class Watch:
    """Samples of this process: work done, resident memory (MiB), open files, seconds of the processor, seconds of the
    fixed work at that moment (which are no part of the former)."""

    samples: list[tuple[float, float, int, float, float]] = field(default_factory=list)
    elsewhere: float = 0.0  # seconds spent on the fixed work

    def look(self, done: int) -> None:
        process = psutil.Process()
        before = time.process_time()
        fixed_work()
        after = time.process_time()
        self.elsewhere += after - before
        memory, files = process.memory_info().rss / 2**20, process.num_fds()
        self.samples.append((done, memory, files, after - self.elsewhere, after - before))

    def report(self, what: str) -> tuple[float, int]:
        """Print the figures; growth of memory over the last three quarters (MiB, by the slope), files left open."""
        rows = np.array([row for row in self.samples if row[0] >= self.samples[-1][0] / 4])
        slope = float(np.polyfit(rows[:, 0], rows[:, 1], 1)[0])
        growth, files = slope * float(rows[-1, 0] - rows[0, 0]), int(rows[-1, 2] - rows[0, 2])
        half = len(rows) // 2
        halves = (rows[:half], rows[half:])
        rates = [float((part[-1, 0] - part[0, 0]) / (part[-1, 3] - part[0, 3])) for part in halves]
        speeds = [1 / float(np.median(part[:, 4])) for part in halves]
        change, slower = rates[1] / rates[0] - 1, speeds[1] / speeds[0] - 1
        print(
            f"\n{what}: {int(rows[-1, 0])} done; memory {rows[0, 1]:.1f} -> {rows[-1, 1]:.1f} MiB over the last three "
            f"quarters, slope {slope * 1024:.3f} KiB each; open files {int(rows[0, 2])} -> {int(rows[-1, 2])}; "
            f"{rates[0]:.2f} -> {rates[1]:.2f} a processor second (first and second half of them, {change:+.1%}), the "
            f"machine itself {slower:+.1%}, so {(1 + change) / (1 + slower) - 1:+.1%} by its measure",
            flush=True,
        )
        return growth, files


def test_a_long_training(tmp_path):
    pipeline = Pipeline(tmp_path / "pipeline")
    watch = Watch()

    class Sampler(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % 20 == 0:
                watch.look(state.global_step)

    args = InteractionDistillationConfig(
        output_dir=str(tmp_path / "rm"),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=1e-4,
        alignment_weight=1.0,
        save_strategy="steps",
        save_steps=max(1, STEPS // 8),
        save_total_limit=2,
        logging_steps=max(1, STEPS // 40),
        bf16=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **STEADY,
    )
    trainer = InteractionDistillationTrainer(
        build_student(),
        args,
        teacher=InteractionTeacher.from_pretrained(str(pipeline.path("encoder")), max_length=128),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tokenizer_of("bytes"),
        callbacks=[Sampler()],
    )
    trainer.train()
    growth, files = watch.report("training, steps of four pairs with alignment")
    assert trainer.state.global_step == STEPS
    assert growth < GROWTH_MIB and files <= 0


def test_a_long_rain_job(tmp_path, monkeypatch):
    pipeline = Pipeline(tmp_path / "pipeline")
    pipeline.add_language_model(prompts=1)
    rows = [{"id": number, "prompt": PAIRS[number % 96]["prompt"] + f" ({number})"} for number in range(PROMPTS)]
    pipeline.write_rows("prompts.jsonl", rows)
    watch, appending = Watch(), JsonlJob.appending

    @contextmanager
    def watched(files):
        with appending(files) as append:

            def append_and_look(row):
                append(row)
                watch.look(len(watch.samples) + 1)

            yield append_and_look

    monkeypatch.setattr(JsonlJob, "appending", watched)
    rain = {"iterations": 6, "min_visits": 2, "candidates": 4, "rollout_max_tokens": 6, "max_batch_size": 4}
    config = RainJobConfig(
        model=str(pipeline.path("lm")),
        prompts=str(pipeline.path("prompts.jsonl")),
        output=str(tmp_path / "answers.jsonl"),
        scorer="support.job_scorers:short",
        rain={**rain, "seed": 3},
        generation={"max_new_tokens": 8, "pad_token_id": 3},
    )
    result = run_rain_job(config)
    growth, files = watch.report("RAIN, prompts")
    assert result["searched"] == PROMPTS == len(watch.samples)
    assert (
        sum(1 for line in (tmp_path / "answers.jsonl").open() if json.loads(line)["completion"] is not None) == PROMPTS
    )
    assert growth < GROWTH_MIB and files <= 0
