"""Settings and pieces of tiny training runs, for the tests of the trainer."""

from __future__ import annotations

import torch
from datasets import Dataset

from hf_interdistill import InteractionDistillationConfig, InteractionDistillationTrainer
from support.models import build_student

COMMON = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "max_steps": 3,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def config(tmp_path, **changes) -> InteractionDistillationConfig:
    return InteractionDistillationConfig(**{"output_dir": str(tmp_path / "rm"), **COMMON, **changes})


def losses(trainer, key="loss") -> list[float]:
    return [float(entry[key]) for entry in trainer.state.log_history if key in entry]


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def as_format(rows, kind: str) -> Dataset:
    """The same preferences in another of TRL's formats."""
    rows = rows[:16]

    def text(messages):
        return " ".join(message["content"] for message in messages)

    if kind == "conversational explicit":
        rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
    elif kind == "conversational implicit":
        rows = [{key: row["prompt"] + row[key] for key in ("chosen", "rejected")} for row in rows]
    elif kind == "standard explicit":
        rows = [
            {key: text(row[key]) + " " * (key == "prompt") for key in ("prompt", "chosen", "rejected")} for row in rows
        ]
    elif kind == "standard implicit":
        rows = [{key: text(row["prompt"]) + " " + text(row[key]) for key in ("chosen", "rejected")} for row in rows]
    return Dataset.from_list(rows)


FORMATS = ["conversational explicit", "conversational implicit", "standard explicit", "standard implicit"]


def first_step(tmp_path, dataset, tokenizer, teacher, **changes):
    """Logs of one step, in which weights are still those of the start."""
    student = changes.pop("student", None) or build_student()
    trainer = InteractionDistillationTrainer(
        student,
        config(tmp_path, max_steps=1, **changes),
        train_dataset=dataset,
        processing_class=tokenizer,
        teacher=teacher,
    )
    trainer.train()
    return next(entry for entry in trainer.state.log_history if "loss" in entry), trainer


def reward_loss(tmp_path, dataset, tokenizer) -> float:
    trainer = InteractionDistillationTrainer(
        build_student(),
        config(tmp_path, max_steps=1, alignment_weight=0),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer.train()
    return losses(trainer)[0]
