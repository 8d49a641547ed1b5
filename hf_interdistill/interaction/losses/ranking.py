"""The loss of more than two ranked responses to one prompt. Pure tensor code."""

from __future__ import annotations

import torch


def plackett_luce_loss(rewards: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of rankings, `(prompts,)`, nats: the sum over responses of
    `log(sum of exp(reward) of all that rank no better) - reward`.

    Source: Plackett (1975), Luce (1959); responses of equal rank by Breslow's approximation (1974): each is compared
    with all of its rank. With two responses it is Bradley-Terry's loss.

    Args:
        rewards: `(prompts, responses)`.
        ranks: the same shape, 1 the best; NaN for responses that a prompt does not have.
    """
    is_there = ~ranks.isnan()
    is_no_better = (ranks[:, None] >= ranks[..., None]) & is_there[:, None]  # comparisons with NaN are false
    rewards = rewards.masked_fill(~is_there, 0.0)
    masked = rewards[:, None].masked_fill(~is_no_better, torch.finfo(rewards.dtype).min)
    return ((masked.logsumexp(2) - rewards) * is_there).sum(1)


def concordance(rewards: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Share of the pairs of differently ranked responses whose rewards are in the order of the ranks, `(prompts,)`."""
    is_better = ranks[..., None] < ranks[:, None]
    is_right = is_better & (rewards[..., None] > rewards[:, None])
    return is_right.sum((1, 2)) / is_better.sum((1, 2))
