"""Evaluation of a reward trainer: each set under its own name, and predictions without a lost row."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import PredictionOutput

from ..scoring.metrics import pair_rewards
from ..utils.binomial import accuracy_interval

if TYPE_CHECKING:
    from torch import nn
    from trl import RewardTrainer as _RewardTrainer
else:  # a mixin: the trainer that it is mixed into brings `RewardTrainer`
    _RewardTrainer = object

logger = logging.getLogger(__name__)


class PairEvaluation(_RewardTrainer):
    """Trainer mixin that corrects what TRL's `RewardTrainer` (seen in 1.16) does in evaluation.

    Overrides `evaluate` and `log` (metrics of the batches get the prefix of their evaluation set, where TRL logs those
    of every set as `eval_*`) and `predict` (prepares the data, keeps both rewards of every pair, returns all metrics).
    """

    if TYPE_CHECKING:
        model: nn.Module

    _metric_prefix = "eval"
    _num_evaluated = 0

    def evaluation_loop(self, *args, **kwargs):
        """As in `Trainer`; the number of pairs is kept for the warning about the teacher."""
        output = super().evaluation_loop(*args, **kwargs)
        self._num_evaluated = output.num_samples or 0
        return output

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """As in `RewardTrainer`; with several evaluation sets each has its own `eval_NAME_*` metrics."""
        datasets = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(datasets, dict):  # `Trainer` calls this method for each set
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        self._take_metrics(metric_key_prefix)  # left over from an interrupted evaluation
        self._metric_prefix = metric_key_prefix
        try:
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._metric_prefix = "eval"
        _warn_of_weak_teacher(metrics, metric_key_prefix, self._num_evaluated)
        return metrics

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix="test") -> PredictionOutput:
        """Rewards and metrics of every pair of a dataset, prepared or not. No pair is left out as too long.

        Args:
            test_dataset: one dataset in a format of `train_dataset`.
            ignore_keys, metric_key_prefix: as in `Trainer`.

        Returns:
            `predictions`: float32 rewards, `(pairs, 2)`, chosen and rejected in the order of the rows; or the output
            of `preprocess_logits_for_metrics`, if the trainer has one. `metrics`: those of `evaluate` (TRL's,
            `interaction/*`, and `compute_metrics` of these predictions), with the prefix.

        Raises:
            TypeError: several datasets at once.
        """
        if isinstance(test_dataset, dict):
            raise TypeError(
                f"`test_dataset` holds {len(test_dataset)} datasets ({', '.join(map(str, test_dataset))}), but "
                "`predict` takes one. Call it for each."
            )
        args: Any = copy.copy(self.args)
        args.max_length = None
        tokenizer: Any = self.processing_class
        dataset = self._prepare_dataset(test_dataset, tokenizer, args, metric_key_prefix)
        self._take_metrics(metric_key_prefix)
        own = self.preprocess_logits_for_metrics
        self.preprocess_logits_for_metrics = own or pair_rewards
        try:
            output = super().predict(dataset, ignore_keys, metric_key_prefix)
        finally:
            self.preprocess_logits_for_metrics = own
        return output._replace(metrics={**(output.metrics or {}), **self._take_metrics(metric_key_prefix)})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `RewardTrainer`, but metrics of an evaluation set have its prefix."""
        if not self.model.training:
            logs.update(self._take_metrics(self._metric_prefix))
        super().log(logs, start_time)

    def _take_metrics(self, prefix: str) -> dict[str, float]:
        """The means of what the evaluated batches gave, which are then cleared."""
        means = {f"{prefix}_{name}": sum(values) / len(values) for name, values in self._metrics["eval"].items()}
        self._metrics["eval"].clear()
        return means


def _warn_of_weak_teacher(metrics: dict[str, Any], prefix: str, pairs: int) -> None:
    """Warn if the teacher is not more accurate than the student; how firmly depends on the number of pairs."""
    teacher, student = metrics.get(f"{prefix}_interaction/teacher_accuracy"), metrics.get(f"{prefix}_accuracy")
    if teacher is None or student is None or teacher > student or not pairs:
        return
    low, high = accuracy_interval(teacher, pairs)
    found = (
        f"On these {pairs} pairs the teacher is right in {teacher:.3f} (95 % interval {low:.3f} to {high:.3f}), "
        f"the reward model {student:.3f}"
    )
    if high < student:
        logger.warning(
            f"{found}: the teacher judges worse, so it is doubtful what it can teach. A longer "
            "`InteractionTeacher.fit` or a stronger encoder may help."
        )
    else:
        logger.warning(f"{found}: the pairs do not show which of them judges better. Evaluate on more pairs.")
