"""How much rewards depend on length. Pure tensor code."""

from __future__ import annotations

import torch


def length_correlation(margins: torch.Tensor, length_differences: torch.Tensor) -> torch.Tensor:
    """Correlation of reward and length within pairs, a scalar from -1 to 1; 0 if all rewards or lengths are equal.

    It is Pearson's correlation over both responses of all pairs, after the mean of each pair is subtracted from its
    rewards and lengths. So it does not depend on which response is the chosen one, nor on the prompts.

    Source: ODIN (arXiv 2402.07319) penalizes the absolute value of Pearson's correlation of reward and length in a
    batch. The means of pairs are ours.

    Args:
        margins: `(pairs,)` chosen minus rejected rewards.
        length_differences: `(pairs,)` tokens of the chosen minus tokens of the rejected response.
    """
    lengths = length_differences.to(margins)
    scale = torch.linalg.vector_norm(margins) * torch.linalg.vector_norm(lengths)
    if not scale > 0:
        return (margins * 0).sum()
    return (margins * lengths).sum() / scale
