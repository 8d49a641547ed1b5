"""Metrics for the evaluation of a `RewardTrainer`.

    RewardTrainer(..., compute_metrics=reward_metrics, preprocess_logits_for_metrics=pair_rewards)

TRL (seen in 1.16) puts the chosen and the rejected rewards of a batch into one column of twice as many rows as pairs.
Over several batches the halves are interleaved, and accelerate's `gather_for_metrics` cuts the last, shorter batch to
its number of *pairs*, so its rejected rewards are lost. `pair_rewards` makes one row per pair before the rows are
gathered: nothing is lost, over any number of batches and processes.
"""

from __future__ import annotations

import numpy as np

from ..scoring.metrics import calibration, pair_margins, pair_rewards, pairwise_accuracy

__all__ = ["pair_rewards", "reward_metrics"]


def reward_metrics(prediction) -> dict[str, float]:
    """Accuracy, ties and calibration for `compute_metrics`.

    Args:
        prediction: an `EvalPrediction` whose predictions `pair_rewards` made.

    Returns:
        `pairwise_accuracy`, `ties`, `pairs`, `ece`, `brier`, `nll` (see `scoring/metrics.py`).

    Raises:
        ValueError: `pair_rewards` was not given to the trainer.
    """
    rewards = np.asarray(prediction.predictions)
    if rewards.ndim != 2 or rewards.shape[1] != 2:
        raise ValueError(
            f"The predictions have the shape {rewards.shape}, not `(pairs, 2)`. Give the trainer "
            "`preprocess_logits_for_metrics=pair_rewards` too: without it the pairs cannot be matched."
        )
    margins = pair_margins(rewards[:, 0], rewards[:, 1])
    return {**pairwise_accuracy(margins), **calibration(margins)}
