"""Trains an `InteractionTeacher` on preferences: single responses first, then pairs in both reading orders."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments, set_seed

from ...training.checkpoints import as_checkpoint_error
from ..data.pairs import Preference, read_preference, text_pieces
from .stages import Example, Stage, clear, run_stage
from .teacher import InteractionTeacher

logger = logging.getLogger(__name__)


@dataclass
class InteractionTeacherConfig(TrainingArguments):
    """Settings for `InteractionTeacher.fit`: those of `TrainingArguments` and the fields below.

    Args:
        teacher_model: encoder to start from (command line only; `fit` has its model already).
        teacher_max_length: tokens of a row (see `InteractionTeacher`); `None` takes what the encoder can read.
        interaction_layers: top layers in which the two responses see each other (see `InteractionTeacher`); `None`
            leaves the teacher as it is.
        warm_start_epochs: epochs on single responses before the pairs. An encoder fresh from pre-training that starts
            with pairs learns little from a few thousand of them.
        num_train_epochs: epochs on pairs.
        eval_fraction: part of the prompts that is held out when `fit` is given no `eval_dataset`.
        early_stopping_patience: evaluations without a better held-out loss after which a stage stops.
    """

    teacher_model: str | None = field(default=None, metadata={"help": "Encoder to start from: Hub name or folder."})
    teacher_max_length: int | None = field(default=None, metadata={"help": "Tokens of a row; None: all it can read."})
    interaction_layers: int | None = field(
        default=None, metadata={"help": "Top layers in which the responses see each other; 0: all, in one row."}
    )
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

    Two stages, each with early stopping on the held-out loss: single responses (as an ordinary reward model, but
    bidirectional), then pairs. Where responses meet in the top layers, the pairs train those layers alone: what lies
    below has seen the same responses already, and would learn them by heart. Where a pair is one row
    (`interaction_layers=0`), it is read in both orders at each visit, so that no step can teach a place. Source: ours.

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
        if args.interaction_layers is not None:
            teacher.interaction_layers = args.interaction_layers
        set_seed(args.seed)
        training, held_out = _split(preferences, eval_dataset, args)
        _run_stages(teacher, folder, training, held_out, args, callbacks, resume_from_checkpoint)
        teacher.metrics = held_out_metrics(teacher.score_pairs(held_out, batch_size=args.per_device_eval_batch_size))
        teacher.freeze()
        if folder != Path(scratch) and args.should_save:
            with as_checkpoint_error(f"The teacher is not saved in {folder}", lambda: "Its stages are kept"):
                teacher.save_pretrained(str(folder))
    if not teacher.metrics["is_better_than_chance"]:
        logger.warning(chance_warning(teacher))
    return teacher.metrics


def _run_stages(teacher, folder: Path, training, held_out, args, callbacks, is_resumed: bool) -> None:
    """Single responses, then pairs; finished stages of a resumed run are loaded."""
    train, held_out_examples = (
        [Example(text_pieces(teacher.tokenizer, item)) for item in part] for part in (training, held_out)
    )
    teacher.reader.requires_grad_(True)
    single = Stage(folder / "single", args.warm_start_epochs, False)
    pair = Stage(folder / "pair", args.num_train_epochs, True)
    if not is_resumed:
        with args.main_process_first(desc="clearing the stages"):
            if args.should_save:
                clear(single)
                clear(pair)
    if single.epochs:
        run_stage(teacher, single, train, held_out_examples, args, callbacks, is_resumed)
        if teacher.interaction_layers:
            teacher.reader.freeze_below_meeting()
    run_stage(teacher, pair, train, held_out_examples, args, callbacks, is_resumed)


def _split(preferences, eval_dataset, args) -> tuple[list[Preference], list[Preference]]:
    rows = [read_preference(row) for row in preferences]
    if eval_dataset is not None:
        return rows, [read_preference(row) for row in eval_dataset]
    training, held_out = split_by_prompt(rows, args.eval_fraction, args.seed)
    return [rows[i] for i in training], [rows[i] for i in held_out]


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
