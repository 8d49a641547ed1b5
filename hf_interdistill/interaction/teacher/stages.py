"""One stage of a teacher's training: single responses or pairs, with early stopping and resuming."""

from __future__ import annotations

import copy
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import SAFE_WEIGHTS_NAME

from ...training.checkpoints import as_checkpoint_error, last_complete_checkpoint, weights_error
from ...training.label_smoothing import smoothed_loss
from ...training.safeguards import TrainingSafeguards
from ...training.sampling import SimilarLengths
from ...utils.atomic_io import atomic_replacement
from ..data.teacher_inputs import PairLayout, TokenizedPair
from .config import InteractionTeacherConfig
from .pair_encoder import PairEncoder, reward_margins
from .stage_records import StageRecord, require_same_record, write_record

logger = logging.getLogger(__name__)

_STAGE_WEIGHTS = "best.safetensors"  # written when a stage is finished, and only then


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        folder: for its checkpoints and, once it is finished, its weights.
        epochs: to train for.
        layout: the two rows of each pair.
        is_pairwise: whether the network reads pairs, or single responses.
        record: of what it is trained on.
    """

    folder: Path
    epochs: float
    layout: PairLayout
    is_pairwise: bool
    record: StageRecord


@dataclass(frozen=True)
class StageData:
    """The pairs to train on, and those held out for early stopping."""

    train: list[TokenizedPair]
    held_out: list[TokenizedPair]


class StageCollator:
    """Two rows per pair, in the layout of the stage."""

    def __init__(self, layout: PairLayout):
        self.layout = layout

    def __call__(self, pairs: Sequence[TokenizedPair]) -> dict[str, torch.Tensor]:
        batch = self.layout.format.collate([row for pair in pairs for row in self.layout.pack(pair)])
        batch.pop("units")
        return {**batch, "labels": torch.ones(len(pairs))}  # `Trainer` computes a loss only where there are labels


class _StageTrainer(TrainingSafeguards, Trainer):
    """`Trainer` with the Bradley-Terry loss on the two rewards of a pair, and batches of similar lengths.

    Args:
        is_pairwise: whether the network reads pairs, or single responses.
    """

    train_dataset: list[TokenizedPair]

    def __init__(self, *args, is_pairwise: bool, **kwargs):
        super().__init__(*args, **kwargs)
        self.is_pairwise = is_pairwise
        # The loss is a mean over the pairs of a batch: let `Trainer` divide it by the accumulation steps.
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset=None):
        return SimilarLengths([pair.length for pair in train_dataset or self.train_dataset], self.args)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        inputs.pop("labels")
        margins = reward_margins(model(**inputs, is_pairwise=self.is_pairwise))
        loss = smoothed_loss(-nn.functional.logsigmoid(margins).mean(), margins, self.args.label_smoothing_factor)
        if model.training:
            self.require_finite(loss)
        return (loss, {"margins": margins.mean(1)}) if return_outputs else loss

    def train_sharded_copy(self, checkpoint: str | None) -> None:
        """As `train`, but FSDP or DeepSpeed takes a copy apart: the network itself is whole before and afterwards."""
        network = self.model
        self.model = self.model_wrapped = copy.deepcopy(network)
        self.train(resume_from_checkpoint=checkpoint)
        gathered = self.accelerator.get_state_dict(self.model_wrapped)  # whole on the first process alone
        state = {}
        for name, value in network.state_dict().items():
            held = gathered[name] if self.accelerator.is_main_process else torch.empty_like(value)
            state[name] = broadcast(held.to(self.accelerator.device, value.dtype))
        network.load_state_dict(state)


def _accuracy(prediction) -> dict[str, float]:
    """Held-out accuracy by the mean margin over both reading orders; ties count half."""
    return {"accuracy": float((np.sign(prediction.predictions) / 2 + 0.5).mean())}


def clear(stage: Stage) -> None:
    """Remove the files that an earlier run left of a stage, so that a later run does not resume from them."""
    (stage.folder / _STAGE_WEIGHTS).unlink(missing_ok=True)
    for folder in stage.folder.glob("checkpoint-*"):
        shutil.rmtree(folder)


def is_finished(stage: Stage, is_resumed: bool) -> bool:
    """Whether a resumed run finds the stage finished; a stage with damaged weights is trained again."""
    weights = stage.folder / _STAGE_WEIGHTS
    if not is_resumed or not weights.exists():
        return False
    fault = weights_error(weights)
    if fault is not None:
        logger.warning(f"{weights} {fault}: this stage of the teacher is trained again.")
    return fault is None


def run_stage(
    network: PairEncoder,
    stage: Stage,
    data: StageData,
    args: InteractionTeacherConfig,
    *,
    callbacks=None,
    is_resumed: bool,
) -> None:
    """Train the network for one stage and load its best weights.

    A finished stage of a resumed run is loaded, an interrupted one is resumed.

    Raises:
        ValueError: the stage to resume was trained on other rows, or with another encoder or settings.
    """
    weights = stage.folder / _STAGE_WEIGHTS
    if is_resumed:
        require_same_record(stage.folder, stage.record)
    if is_finished(stage, is_resumed):
        network.load_state_dict(load_file(weights))
        return
    if args.should_save:
        write_record(stage.folder, stage.record)
    checkpoint = last_complete_checkpoint(stage.folder) if is_resumed else None
    stopping = EarlyStoppingCallback(args.early_stopping_patience)
    stopping.early_stopping_patience_counter, best = _early_stopping_state(checkpoint)
    trainer = _StageTrainer(
        model=network,
        args=_stage_arguments(args, stage, len(data.train)),
        train_dataset=data.train,
        eval_dataset=data.held_out,
        data_collator=StageCollator(stage.layout),
        is_pairwise=stage.is_pairwise,
        compute_metrics=_accuracy,
        callbacks=[stopping, *(callbacks or [])],
    )
    if best is not None and stopping.early_stopping_patience_counter >= args.early_stopping_patience:
        network.load_state_dict(load_file(stage.folder / best / SAFE_WEIGHTS_NAME))  # it had stopped early
    elif trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.train_sharded_copy(checkpoint)
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    # Without the autocast of mixed precision, which would stay: the teacher judges as when it is loaded.
    trainer.accelerator.unwrap_model(network, keep_fp32_wrapper=False)
    network.to(trainer.args.device)
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        state = {name: value.contiguous().cpu() for name, value in network.state_dict().items()}
        with (
            as_checkpoint_error(f"{weights} is not saved", lambda: "The stage's checkpoints are kept"),
            atomic_replacement(weights) as scratch,
        ):
            save_file(state, scratch)
        for folder in stage.folder.glob("checkpoint-*"):
            shutil.rmtree(folder)
    trainer.accelerator.wait_for_everyone()
    if trainer.is_deepspeed_enabled:
        AcceleratorState._reset_state()  # else accelerate refuses the next `Trainer` of this process


def _early_stopping_state(checkpoint: str | None) -> tuple[int, str | None]:
    """Evaluations without progress at a checkpoint, and the folder name of the best checkpoint so far.

    `Trainer` would count from zero, and so stop later than an uninterrupted run.
    """
    if checkpoint is None:
        return 0, None
    state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    stopping = state.stateful_callbacks[EarlyStoppingCallback.__name__]
    best = state.best_model_checkpoint
    return stopping["attributes"]["early_stopping_patience_counter"], best and Path(best).name


def _stage_arguments(args: InteractionTeacherConfig, stage: Stage, pairs: int) -> InteractionTeacherConfig:
    """The user's arguments, changed for a stage: held-out evaluations, the best weights kept."""
    arguments = copy.copy(args)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    interval = max(1, math.ceil(math.ceil(pairs / batch) / args.evals_per_epoch))
    arguments.output_dir = str(stage.folder)
    arguments.num_train_epochs = stage.epochs
    arguments.eval_strategy = arguments.save_strategy = IntervalStrategy.STEPS
    arguments.eval_steps = arguments.save_steps = interval
    arguments.load_best_model_at_end = True
    # Not the accuracy, which is mostly noise on a few hundred pairs.
    arguments.metric_for_best_model, arguments.greater_is_better = "loss", False
    arguments.save_total_limit = 2  # the best and the last: with 1, the last would be deleted too early
    arguments.remove_unused_columns = False
    arguments.label_names = ["labels"]
    return arguments
