"""Trains an `InteractionTeacher` on preferences: single responses first, then pairs in both reading orders."""

from __future__ import annotations

import copy
import json
import logging
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments, set_seed
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import IntervalStrategy, get_last_checkpoint

from .pairs import Preference, read_preference, text_pieces
from .sequences import Piece
from .teacher import InteractionTeacher, reward_margins

logger = logging.getLogger(__name__)

_STAGE_WEIGHTS = "best.safetensors"  # written when a stage is finished, and only then


@dataclass
class InteractionTeacherConfig(TrainingArguments):
    """Settings for `InteractionTeacher.fit`: those of `TrainingArguments` and the fields below.

    Args:
        teacher_model: encoder to start from (command line only; `fit` has its model already).
        teacher_max_length: tokens a pair; `None` takes what the encoder can read.
        warm_start_epochs: epochs on single responses before the pairs. An encoder fresh from pre-training that starts
            with pairs learns little from a few thousand of them.
        num_train_epochs: epochs on pairs.
        eval_fraction: part of the prompts that is held out when `fit` is given no `eval_dataset`.
        early_stopping_patience: evaluations without a better held-out accuracy after which a stage stops.
    """

    teacher_model: str | None = field(default=None, metadata={"help": "Encoder to start from: Hub name or folder."})
    teacher_max_length: int | None = field(default=None, metadata={"help": "Tokens of a pair; None: all it can read."})
    warm_start_epochs: float = field(default=2.0, metadata={"help": "Epochs on single responses before the pairs."})
    num_train_epochs: float = field(default=2.0, metadata={"help": "Epochs on pairs."})
    eval_fraction: float = field(default=0.1, metadata={"help": "Part of the prompts held out for early stopping."})
    early_stopping_patience: int = field(default=3, metadata={"help": "Evaluations without progress before a stop."})
    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate of AdamW."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up steps, or their part of all if below 1."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Pairs a device and step."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Pairs a device and evaluation step."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two logs."})
    evals_per_epoch: int = field(default=2, metadata={"help": "Held-out evaluations in each epoch."})

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.eval_fraction < 1:
            raise ValueError(f"`eval_fraction` must lie between 0 and 1, got {self.eval_fraction}.")
        if self.warm_start_epochs < 0 or self.num_train_epochs <= 0:
            raise ValueError(
                f"`warm_start_epochs` ({self.warm_start_epochs}) must not be negative and `num_train_epochs` "
                f"({self.num_train_epochs}) must be positive."
            )


_Pieces = tuple[Piece, Piece, Piece]  # prompt, chosen, rejected


@dataclass(frozen=True)
class _Stage:
    folder: Path
    epochs: float
    is_pairwise: bool


class _Collator:
    """Two rows a pair: each response alone, or the pair in both orders (chosen first, rejected first)."""

    def __init__(self, teacher: InteractionTeacher, is_pairwise: bool):
        self.format, self.max_length, self.is_pairwise = teacher.format, teacher.max_length, is_pairwise

    def __call__(self, examples: Sequence[_Pieces]) -> dict[str, torch.Tensor]:
        packed = []
        for prompt, chosen, rejected in examples:
            readings = ((chosen, rejected), (rejected, chosen)) if self.is_pairwise else ((chosen,), (rejected,))
            packed += [self.format.pack(prompt, responses, self.max_length) for responses in readings]
        batch = self.format.collate(packed)
        batch.pop("units")
        return {**batch, "labels": torch.zeros(len(examples))}  # `Trainer` counts examples by their labels


class _SimilarLengths(torch.utils.data.Sampler):
    """Batches of examples of similar length, in random order: less padding.

    Its order depends on seed and epoch alone, so a resumed run sees the batches that an unbroken one would.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        indices = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        batches = [indices[i : i + self.batch_size] for i in range(0, len(indices), self.batch_size)]
        whole = len(batches) - (len(batches[-1]) < self.batch_size)  # a short batch stays the last
        order = [*torch.randperm(whole, generator=generator).tolist(), *range(whole, len(batches))]
        return (index for batch in order for index in batches[batch])


class _StageTrainer(Trainer):
    """`Trainer` with the Bradley-Terry loss on the two rewards of a pair, and batches of similar lengths."""

    def _get_train_sampler(self, train_dataset=None):
        lengths = [sum(len(piece.ids) for piece in pieces) for pieces in train_dataset or self.train_dataset]
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return _SimilarLengths(lengths, batch_size, self.args.data_seed or self.args.seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        margins = reward_margins(model(**{name: value for name, value in inputs.items() if name != "labels"}))
        loss = -nn.functional.logsigmoid(margins).mean()
        return (loss, {"margins": margins.mean(1)}) if return_outputs else loss


def _accuracy(prediction) -> dict[str, float]:
    """Held-out accuracy by the mean margin over both reading orders; ties count half."""
    return {"accuracy": float((np.sign(prediction.predictions) / 2 + 0.5).mean())}


def split_by_prompt(preferences: Sequence[Preference], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of a training and a held-out part that share no prompt."""
    prompts: dict[str, list[int]] = {}
    for index, preference in enumerate(preferences):
        prompts.setdefault(json.dumps(preference.prompt, default=str), []).append(index)
    groups = list(prompts.values())
    held_out: list[int] = []
    for group in np.random.default_rng(seed).permutation(len(groups)):
        if len(held_out) >= fraction * len(preferences):
            break
        held_out += groups[group]
    training = sorted(set(range(len(preferences))) - set(held_out))
    if not training or not held_out:
        raise ValueError(
            f"{len(preferences)} preferences with {len(groups)} distinct prompts cannot be split into a training and "
            f"a held-out part (`eval_fraction={fraction}`): give more prompts or an `eval_dataset`."
        )
    return training, sorted(held_out)


def fit_teacher(
    teacher: InteractionTeacher,
    preferences,
    output_dir: str | None = None,
    *,
    args: InteractionTeacherConfig | None = None,
    eval_dataset=None,
    callbacks=None,
    resume_from_checkpoint: bool = False,
) -> dict[str, Any]:
    """Train a teacher on preferences, measure it on held-out ones, and freeze it.

    Two stages, each with early stopping on the held-out accuracy: single responses (as an ordinary reward model, but
    bidirectional), then pairs. A pair is read in both orders at each visit, so that no step can teach a place.
    Source: ours.

    Args:
        teacher: the teacher; changed in place.
        preferences: rows of any preference format (a `Dataset` or a list).
        output_dir: where checkpoints and the finished teacher go; nothing is kept without it.
        args: settings; `output_dir` overrides theirs.
        eval_dataset: held-out rows; without them `args.eval_fraction` of the prompts is held out.
        callbacks: for the `Trainer` of each stage.
        resume_from_checkpoint: go on where an earlier call with the same `output_dir` stopped.

    Returns:
        held-out metrics: `accuracy` (mean margin of both orders), `accuracy_chosen_first`,
        `accuracy_rejected_first`, `order_agreement` (share of pairs judged alike in both orders), `pairs`,
        `standard_error`, `is_better_than_chance` (one-sided, 5 %). Also kept as `teacher.metrics`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(output_dir or (args.output_dir if args is not None and args.output_dir else scratch))
        args = args or InteractionTeacherConfig(output_dir=str(folder))
        if args.teacher_max_length is not None:
            teacher.max_length = teacher.check_length(args.teacher_max_length)
        set_seed(args.seed)
        training, held_out = _split(preferences, eval_dataset, args)
        data = [[text_pieces(teacher.tokenizer, item) for item in part] for part in (training, held_out)]
        teacher.reader.requires_grad_(True)
        stages = (
            _Stage(folder / "single", args.warm_start_epochs, False),
            _Stage(folder / "pair", args.num_train_epochs, True),
        )
        for stage in stages:
            if stage.epochs:
                _run_stage(teacher, stage, data, args, callbacks, resume_from_checkpoint)
        teacher.metrics = held_out_metrics(teacher.judge(held_out, batch_size=args.per_device_eval_batch_size))
        teacher.freeze()
        if folder != Path(scratch) and args.should_save:
            teacher.save_pretrained(str(folder))
    if not teacher.metrics["is_better_than_chance"]:
        logger.warning(chance_warning(teacher))
    return teacher.metrics


def _split(preferences, eval_dataset, args) -> tuple[list[Preference], list[Preference]]:
    rows = [read_preference(row) for row in preferences]
    if eval_dataset is not None:
        return rows, [read_preference(row) for row in eval_dataset]
    training, held_out = split_by_prompt(rows, args.eval_fraction, args.seed)
    return [rows[i] for i in training], [rows[i] for i in held_out]


def _run_stage(teacher, stage: _Stage, data, args, callbacks, is_resumed: bool) -> None:
    """Train one stage and load its best weights; a finished stage is loaded, an interrupted one goes on."""
    weights = stage.folder / _STAGE_WEIGHTS
    if is_resumed and weights.exists():
        teacher.reader.load_state_dict(load_file(weights))
        return
    train, held_out = data
    trainer = _StageTrainer(
        model=teacher.reader,
        args=_stage_arguments(args, stage, len(train)),
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=_Collator(teacher, stage.is_pairwise),
        compute_metrics=_accuracy,
        callbacks=[EarlyStoppingCallback(args.early_stopping_patience), *(callbacks or [])],
    )
    checkpoint = get_last_checkpoint(str(stage.folder)) if is_resumed and stage.folder.is_dir() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    teacher.reader.to(trainer.args.device)
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        save_file({name: value.contiguous().cpu() for name, value in teacher.reader.state_dict().items()}, weights)
        for folder in stage.folder.glob("checkpoint-*"):
            shutil.rmtree(folder)
    trainer.accelerator.wait_for_everyone()


def _stage_arguments(args: InteractionTeacherConfig, stage: _Stage, pairs: int) -> InteractionTeacherConfig:
    """The user's arguments with what a stage needs: held-out evaluations, the best weights kept."""
    arguments = copy.copy(args)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    interval = max(1, math.ceil(math.ceil(pairs / batch) / args.evals_per_epoch))
    arguments.output_dir = str(stage.folder)
    arguments.num_train_epochs = stage.epochs
    arguments.eval_strategy = arguments.save_strategy = IntervalStrategy.STEPS
    arguments.eval_steps = arguments.save_steps = interval
    arguments.load_best_model_at_end = True
    arguments.metric_for_best_model, arguments.greater_is_better = "accuracy", True
    arguments.save_total_limit = 1
    arguments.remove_unused_columns = False
    arguments.label_names = ["labels"]
    return arguments


def held_out_metrics(margins: torch.Tensor) -> dict[str, Any]:
    """Metrics from the margins of both reading orders, `(pairs, 2)`; ties count half."""
    right = (margins.sign() / 2 + 0.5).double()
    accuracy = float((margins.mean(1).sign() / 2 + 0.5).double().mean())
    pairs = len(margins)
    error = math.sqrt(max(accuracy * (1 - accuracy), 1e-12) / pairs)
    return {
        "accuracy": accuracy,
        "accuracy_chosen_first": float(right[:, 0].mean()),
        "accuracy_rejected_first": float(right[:, 1].mean()),
        "order_agreement": float((right[:, 0] == right[:, 1]).double().mean()),
        "pairs": pairs,
        "standard_error": error,
        "is_better_than_chance": accuracy - 1.645 * math.sqrt(0.25 / pairs) > 0.5,
    }


def chance_warning(teacher: InteractionTeacher) -> str | None:
    """What to tell a user whose teacher is no better than chance, or was never trained; `None` if it is fine."""
    if teacher.metrics is None:
        return (
            f"THE TEACHER {teacher.name} WAS NEVER TRAINED ON PREFERENCES. A raw encoder knows nothing of them, and "
            "its map is a guess. Call `teacher.fit(preferences)` or run `interdistill teacher` first."
        )
    if teacher.metrics["is_better_than_chance"]:
        return None
    metrics = teacher.metrics
    return (
        f"THE TEACHER {teacher.name} IS NO BETTER THAN CHANCE: held-out accuracy {metrics['accuracy']:.3f} "
        f"+- {metrics['standard_error']:.3f} on {metrics['pairs']} pairs. Distilling its map teaches noise. Give it "
        "more preferences, more `warm_start_epochs`, another learning rate or a stronger encoder, or train with "
        "`alignment_weight=0`."
    )
