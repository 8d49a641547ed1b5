"""One stage of a teacher's training: single responses or pairs, with early stopping and resuming."""

from __future__ import annotations

import copy
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import SAFE_WEIGHTS_NAME

from ...training.checkpoints import as_checkpoint_error, last_complete_checkpoint, weights_error
from ...training.safeguards import TrainingSafeguards
from ...utils.atomic_io import atomic_replacement
from ..data.teacher_inputs import Piece
from .pair_encoder import reward_margins
from .teacher import InteractionTeacher

logger = logging.getLogger(__name__)

_STAGE_WEIGHTS = "best.safetensors"  # written when a stage is finished, and only then
_Pieces = tuple[Piece, Piece, Piece]  # prompt, chosen, rejected


@dataclass(frozen=True)
class Example:
    """A pair, tokenized: prompt, chosen and rejected."""

    pieces: _Pieces

    @property
    def length(self) -> int:
        return sum(len(piece.ids) for piece in self.pieces)


@dataclass(frozen=True)
class Stage:
    folder: Path
    epochs: float
    is_pairwise: bool


class StageCollator:
    """Two rows a pair: each response alone, or the rows in which the teacher reads pairs."""

    def __init__(self, teacher: InteractionTeacher, is_pairwise: bool):
        self.reading = teacher.reading if is_pairwise else replace(teacher.reading, is_late=True)

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        batch = self.reading.format.collate(
            [row for example in examples for row in self.reading.rows(*example.pieces)]
        )
        batch.pop("units")
        return {**batch, "labels": torch.ones(len(examples))}  # `Trainer` takes a loss where there are labels


class SimilarLengths(torch.utils.data.Sampler):
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


class _StageTrainer(TrainingSafeguards, Trainer):
    """`Trainer` with the Bradley-Terry loss on the two rewards of a pair, and batches of similar lengths.

    Args:
        is_pairwise: whether the teacher reads pairs, or single responses.
    """

    def __init__(self, *args, is_pairwise: bool, **kwargs):
        super().__init__(*args, **kwargs)
        self.is_pairwise = is_pairwise
        # The loss is a mean over the batch's pairs, not a sum over the step's: let `Trainer` divide by accumulation.
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset=None):
        lengths = [example.length for example in train_dataset or self.train_dataset]
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return SimilarLengths(lengths, batch_size, self.args.data_seed or self.args.seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        inputs.pop("labels")
        margins = reward_margins(model(**inputs, is_pairwise=self.is_pairwise))
        loss = -nn.functional.logsigmoid(margins).mean()
        if model.training:
            self.require_finite(loss)
        return (loss, {"margins": margins.mean(1)}) if return_outputs else loss


def _accuracy(prediction) -> dict[str, float]:
    """Held-out accuracy by the mean margin over both reading orders; ties count half."""
    return {"accuracy": float((np.sign(prediction.predictions) / 2 + 0.5).mean())}


def clear(stage: Stage) -> None:
    """Remove what an earlier run left of a stage, so that no later one takes it for its own."""
    (stage.folder / _STAGE_WEIGHTS).unlink(missing_ok=True)
    for folder in stage.folder.glob("checkpoint-*"):
        shutil.rmtree(folder)


def is_finished(stage: Stage, is_resumed: bool) -> bool:
    """Whether a run that goes on finds the stage done; damaged weights are trained again."""
    weights = stage.folder / _STAGE_WEIGHTS
    if not is_resumed or not weights.exists():
        return False
    fault = weights_error(weights)
    if fault is not None:
        logger.warning(f"{weights} {fault}: this stage of the teacher is trained again.")
    return fault is None


def run_stage(teacher, stage: Stage, train, held_out, args, callbacks, is_resumed: bool) -> None:
    """Train one stage and load its best weights; a finished stage is loaded, an interrupted one goes on."""
    weights = stage.folder / _STAGE_WEIGHTS
    if is_finished(stage, is_resumed):
        teacher.reader.load_state_dict(load_file(weights))
        return
    checkpoint = last_complete_checkpoint(stage.folder) if is_resumed else None
    stopping = EarlyStoppingCallback(args.early_stopping_patience)
    stopping.early_stopping_patience_counter, best = _where_it_was(checkpoint)
    trainer = _StageTrainer(
        model=teacher.reader,
        args=_stage_arguments(args, stage, len(train)),
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=StageCollator(teacher, stage.is_pairwise),
        is_pairwise=stage.is_pairwise,
        compute_metrics=_accuracy,
        callbacks=[stopping, *(callbacks or [])],
    )
    if best is not None and stopping.early_stopping_patience_counter >= args.early_stopping_patience:
        teacher.reader.load_state_dict(load_file(stage.folder / best / SAFE_WEIGHTS_NAME))  # it had stopped early
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    teacher.reader.to(trainer.args.device)
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        state = {name: value.contiguous().cpu() for name, value in teacher.reader.state_dict().items()}
        with (
            as_checkpoint_error(f"{weights} is not saved", lambda: "The stage's checkpoints are kept"),
            atomic_replacement(weights) as scratch,
        ):
            save_file(state, scratch)
        for folder in stage.folder.glob("checkpoint-*"):
            shutil.rmtree(folder)
    trainer.accelerator.wait_for_everyone()


def _where_it_was(checkpoint: str | None) -> tuple[int, str | None]:
    """Evaluations without progress at a checkpoint, and the folder name of the best one by then.

    `Trainer` would begin to count anew, and stop later than a run that was never interrupted.
    """
    if checkpoint is None:
        return 0, None
    state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    stopping = state.stateful_callbacks[EarlyStoppingCallback.__name__]
    best = state.best_model_checkpoint
    return stopping["attributes"]["early_stopping_patience_counter"], best and Path(best).name


def _stage_arguments(args, stage: Stage, pairs: int):
    """The user's arguments with what a stage needs: held-out evaluations, the best weights kept."""
    arguments = copy.copy(args)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    interval = max(1, math.ceil(math.ceil(pairs / batch) / args.evals_per_epoch))
    arguments.output_dir = str(stage.folder)
    arguments.num_train_epochs = stage.epochs
    arguments.eval_strategy = arguments.save_strategy = IntervalStrategy.STEPS
    arguments.eval_steps = arguments.save_steps = interval
    arguments.load_best_model_at_end = True
    # Not by the accuracy: on a few hundred pairs it is mostly luck.
    arguments.metric_for_best_model, arguments.greater_is_better = "loss", False
    arguments.save_total_limit = 2  # the best and the last: with 1 the last is gone before the stage is done
    arguments.remove_unused_columns = False
    arguments.label_names = ["labels"]
    return arguments
