"""What a run logs about its alignment: metrics of each batch, and how much of the teacher's map the student
explains."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from datasets import IterableDataset
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from ..scoring.batching import evaluation_mode
from .evaluation import PairEvaluation
from .losses.explained import EXPLAINED_KEYS, LITTLE_EXPLAINED, ExplainedShare
from .objective import AlignmentObjective, AlignmentOutput

if TYPE_CHECKING:
    from .config import InteractionDistillationConfig

logger = logging.getLogger(__name__)

START_PAIRS = 64
"""Training pairs, evenly spaced, on which the untrained student is measured before the first step."""


class AlignmentLearning(PairEvaluation):
    """Trainer mixin that logs alignment and reward loss, and the share of the teacher's map that the student explains.

    The share, `interaction/explained`, is that of whole rows, `interaction/explained_intra` and `_inter` are those of
    parts of rows: see `ExplainedShare`. Before the first step it is measured on `START_PAIRS` training pairs, and
    logged as step 0; a resumed run has that entry already. Without a teacher none of this happens.

    Overrides `train` (warns at the end if little was learnt), `log` and `evaluate`'s metrics.
    """

    if TYPE_CHECKING:
        args: InteractionDistillationConfig
        objective: AlignmentObjective | None
        _dropped: torch.Tensor

    def __init__(self, *args, **kwargs):
        self._explained = {"train": ExplainedShare(), "eval": ExplainedShare()}
        self._is_measuring_start = False
        super().__init__(*args, **kwargs)
        self.add_callback(_BeforeTraining(self))

    def train(self, *args, **kwargs):
        """As in `Trainer`; then a warning if the student learnt little of the teacher's map."""
        output = super().train(*args, **kwargs)
        if self.is_world_process_zero():
            self._warn_of_little_learnt()
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `PairEvaluation`, with the explained share of the batches since the last log of training."""
        if self.model.training:
            logs.update(_named(self._explained["train"].take()))
        super().log(logs, start_time)

    def _take_metrics(self, prefix: str) -> dict[str, float]:
        explained = _named(self._explained["eval"].take(), f"{prefix}_")
        return {**super()._take_metrics(prefix), **explained}

    def _visit(self) -> dict[str, Any]:
        """Which visit to its pairs a batch is, and how many there are, as in `AlignmentObjective`."""
        if self.model.training or self._is_measuring_start:  # the start reads the maps that the first epoch needs
            return {"visit": int(self.state.epoch or 0) + 1, "num_visits": self.state.num_train_epochs}
        return {"visit": 0, "num_visits": 1}

    def _num_new_pairs(self, pairs: int) -> int | None:
        """Pairs of this process's evaluation batch that were not evaluated before; `None` (all) in training.

        accelerate fills the last batch of several processes with pairs from the start of the dataset.
        """
        state = self.accelerator.gradient_state
        if self.model.training:
            return None
        if not state.end_of_dataloader or state.remainder <= 0:
            return pairs
        return min(max(state.remainder - self.accelerator.process_index * pairs, 0), pairs)

    def _log_alignment(self, alignment: AlignmentOutput, weight: float) -> None:
        own = [torch.ones_like(alignment.loss.detach()), *alignment.metrics.values(), *alignment.divergences.flatten()]
        sums = self.accelerator.gather(alignment.num_pairs * torch.stack(own)[None]).sum(0)
        values, divergences = sums.tensor_split([1 + len(alignment.metrics)])
        mode = "train" if self.model.training else "eval"
        self._explained[mode].add(divergences.view_as(alignment.divergences))
        # Logged metrics are means over batches. In evaluation each pair is one entry, so a short batch weighs less.
        entries = 1 if self.model.training else int(values[0])
        for name, mean in zip(alignment.metrics, (values[1:] / values[0]).tolist(), strict=True) if entries else ():
            self._metrics[mode][f"interaction/{name}"] += [mean] * entries
        self._metrics[mode]["interaction/weight"].append(weight)
        if self.model.training and int(self._dropped):  # of a stream; those of a dataset are logged when prepared
            self._metrics[mode]["interaction/dropped_pairs"] = [int(self._dropped)]

    def _log_reward_loss(self, metrics: dict[str, torch.Tensor]) -> None:
        """Log values of pairs, `(pairs,)` each: their mean over processes, without those that are NaN."""
        if not metrics:
            return
        values = torch.stack(list(metrics.values()))[:, : self._num_new_pairs(len(next(iter(metrics.values()))))]
        sums = self.accelerator.gather(torch.stack([values.nansum(1), (~values.isnan()).sum(1)], 1)[None]).sum(0)
        mode = "train" if self.model.training else "eval"
        for name, (total, count) in zip(metrics, sums.tolist(), strict=True):
            if count:  # as in `_log_alignment`, in evaluation each pair is one entry
                self._metrics[mode][name] += [total / count] * (int(count) if mode == "eval" else 1)

    def log_start(self) -> None:
        """Log the explained share of the student as it is, on a sample of the training pairs."""
        explained = self._explained_by_start()
        if explained:
            self.log(explained)
        elif self.args.alignment_control != "uniform":
            logger.warning(
                "`interaction/explained` is not logged: the teacher attends equally to all units, so there is nothing "
                "to explain. Use another layer (`teacher_layers`) or teacher."
            )

    @torch.no_grad()
    def _explained_by_start(self) -> dict[str, float]:
        loader = DataLoader(
            _sample(self.train_dataset, START_PAIRS),
            batch_size=self.args.per_device_train_batch_size,  # what training has memory for
            collate_fn=self._get_collator_with_removed_columns(self.data_collator, description="start"),
            generator=torch.Generator(),  # else the loader draws from the random numbers of training
        )
        dropped = self._dropped.clone()
        self._is_measuring_start = True
        try:
            with evaluation_mode(self.model):
                for inputs in self.accelerator.prepare(loader):
                    with self.compute_loss_context_manager():
                        self.compute_loss(self.model, self._prepare_inputs(inputs))
        finally:
            self._is_measuring_start = False
            self._dropped.copy_(dropped)  # a stream has counted them now, and will count them again
            metrics = self._take_metrics("start")
        return {key.removeprefix("start_"): value for key, value in metrics.items() if "/explained" in key}

    def explained_share(self) -> tuple[float | None, float | None]:
        """The share of the aligned scope before the first step and at the end of training, `None` if not logged."""
        key = f"interaction/{EXPLAINED_KEYS[self.args.alignment_scope]}"
        logged = [(entry["step"], entry[key]) for entry in self.state.log_history if key in entry]
        starts = [share for step, share in logged if step == 0]
        later = [share for step, share in logged if step > 0]
        return starts[0] if starts else None, later[-1] if later else None

    def _warn_of_little_learnt(self) -> None:
        start, end = self.explained_share()
        name = EXPLAINED_KEYS[self.args.alignment_scope]
        if end is None or end >= LITTLE_EXPLAINED or self.args.alignment_control != "none":
            return
        before = "" if start is None else f" ({start:.2f} before it)"
        logger.warning(
            f"The student learnt little of the teacher's map: `interaction/{name}` is {end:.2f} at the end of "
            f"training{before}, less than {LITTLE_EXPLAINED}. So this run cannot show what the map is worth. Raise "
            f"`alignment_weight` ({self.args.alignment_weight}) or `learning_rate` "
            f"({self.args.learning_rate}), train for more steps ({self.state.global_step}), or align another layer "
            f"(`student_layers` {self.args.student_layers}, `teacher_layers` {self.args.teacher_layers})."
        )


class _BeforeTraining(TrainerCallback):
    def __init__(self, trainer: AlignmentLearning):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._explained["train"].take()  # left over from an interrupted run
        if self.trainer.objective is not None and state.global_step == 0:
            self.trainer.log_start()


def _named(shares: dict[str, float], prefix: str = "") -> dict[str, float]:
    return {f"{prefix}interaction/{name}": share for name, share in shares.items()}


def _sample(dataset, count: int):
    """Rows at even distances, the last among them; of a stream its first rows."""
    if isinstance(dataset, IterableDataset):
        return dataset.take(count)
    step = max(len(dataset) / count, 1)
    return dataset.select(sorted({len(dataset) - 1 - int(i * step) for i in range(min(count, len(dataset)))}))
