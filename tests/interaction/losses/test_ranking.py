"""Plackett-Luce against the product of choices, one after the other: values and gradients."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from hf_interdistill.interaction.losses.ranking import concordance, plackett_luce_loss

NAN = float("nan")


def by_choices(rewards: torch.Tensor, ranks: list[float]) -> torch.Tensor:
    """Minus the log of: the best is chosen of all, the next of the rest, ... Missing ones have NaN."""
    there = [number for number, rank in enumerate(ranks) if rank == rank]
    probability = torch.ones((), dtype=rewards.dtype)
    for number in there:
        rest = [other for other in there if ranks[other] >= ranks[number]]  # its equals among them
        probability = probability * rewards[number].exp() / rewards[rest].exp().sum()
    return -probability.log()


@pytest.mark.parametrize(
    "ranks", [[1, 2], [2, 1, 3, 4], [4, 3, 2, 1], [1, 1, 2, 3], [1, 2, 2, 2], [3, 1, NAN, 2], [1, 2, NAN, NAN]]
)
def test_values_and_gradients_are_those_of_choices(ranks):
    generator = torch.Generator().manual_seed(0)
    rewards = 2 * torch.randn(1, len(ranks), generator=generator, dtype=torch.float64)
    one, other = rewards.clone().requires_grad_(), rewards.clone().requires_grad_()
    found = plackett_luce_loss(one, torch.tensor([ranks], dtype=torch.float64))
    expected = by_choices(other[0], ranks)
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss.sum(), of)[0] for loss, of in ((found, one), (expected, other)))
    )


def test_all_rankings_of_four_are_all_there_are():
    rewards = torch.tensor([[0.3, -1.0, 2.0, 0.1]], dtype=torch.float64).expand(24, 4)
    ranks = torch.tensor(list(permutations([1.0, 2.0, 3.0, 4.0])))
    assert float((-plackett_luce_loss(rewards, ranks)).exp().sum()) == pytest.approx(1.0)


def test_two_responses_are_bradley_terry_and_a_batch_is_its_rows():
    rewards = torch.tensor([[0.3, -1.0, 5.0], [2.0, 3.0, 1.0]])
    ranks = torch.tensor([[1.0, 2.0, NAN], [3.0, 1.0, 2.0]])
    found = plackett_luce_loss(rewards, ranks)
    assert float(found[0]) == pytest.approx(float(-torch.nn.functional.logsigmoid(torch.tensor(1.3))), rel=1e-6)
    assert float(found[1]) == pytest.approx(float(by_choices(rewards[1], [3, 1, 2])), rel=1e-6)


def test_far_apart_rewards_are_finite():
    rewards = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    loss = plackett_luce_loss(rewards, torch.tensor([[1.0, 2.0, NAN]]))
    (gradient,) = torch.autograd.grad(loss.sum(), rewards)
    assert float(loss.detach()) == pytest.approx(2e4) and gradient.tolist() == [[-1.0, 1.0, 0.0]]


def test_concordance_counts_pairs_of_different_ranks():
    rewards = torch.tensor([[3.0, 2.0, 1.0, 9.0], [1.0, 2.0, 2.0, 0.0]])
    ranks = torch.tensor([[1.0, 2.0, 3.0, NAN], [1.0, 1.0, 2.0, 3.0]])
    # second row: 0 over 2 wrong, 0 over 3 right, 1 over 2 equal and so wrong, 1 over 3 and 2 over 3 right
    assert concordance(rewards, ranks).tolist() == pytest.approx([1.0, 3 / 5])
