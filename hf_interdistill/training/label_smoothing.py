"""Label smoothing of the Bradley-Terry loss, which `RewardTrainer` takes as an option and ignores."""

from __future__ import annotations

import torch


def require_factor(factor: float) -> None:
    """Raise `ValueError` for a `label_smoothing_factor` that would teach nothing or the opposite."""
    if not 0 <= factor < 0.5:
        raise ValueError(
            f"`label_smoothing_factor` is {factor}, but it is the probability that a label is wrong: from 0 to below "
            "0.5, where nothing would be learned. Use 0.1, say."
        )


def smoothed_loss(loss: torch.Tensor, margins: torch.Tensor, factor: float) -> torch.Tensor:
    """The mean of `-(1 - factor) * log sigmoid(m) - factor * log sigmoid(-m)`, which cDPO calls conservative.

    Args:
        loss: the mean of `-log sigmoid(m)`, scalar, perhaps with more terms.
        margins: chosen minus rejected rewards, minus the margin that the data ask for: `m`, of any shape.
        factor: probability that a label is wrong.
    """
    return loss + factor * margins.mean() if factor else loss  # log sigmoid(-m) = log sigmoid(m) - m
