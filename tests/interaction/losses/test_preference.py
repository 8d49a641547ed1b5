"""Losses of label shares and ties, written out in probabilities: values and gradients."""

from __future__ import annotations

import math

import pytest
import torch

from hf_interdistill.interaction.losses.preference import PairLabels, outcome_log_probs, preference_loss

MARGINS = torch.tensor([-30.0, -2.0, -0.3, 0.0, 0.7, 3.0, 25.0], dtype=torch.float64)
LABELS = PairLabels(
    torch.tensor([0.0, 0.2, 0.5, 0.0, 1.0, 0.3, 0.6], dtype=torch.float64),
    torch.tensor([0.0, 0.5, 0.0, 1.0, 0.0, 0.3, 0.4], dtype=torch.float64),
)
MODELS = [("none", None), ("davidson", None), ("davidson", 0.3), ("rao_kupper", None), ("rao_kupper", 1.2)]


def probabilities(chosen: torch.Tensor, rejected: torch.Tensor, model: str, parameter: float | None):
    """Wins and ties as the papers write them, in worths `exp(reward)`."""
    one, other = chosen.exp(), rejected.exp()
    if model == "none":
        return one / (one + other), other / (one + other), None
    if model == "davidson":
        nu = 2.0 if parameter is None else parameter
        total = one + other + nu * (one * other).sqrt()
        return one / total, other / total, nu * (one * other).sqrt() / total
    theta = 3.0 if parameter is None else parameter
    win, loss = one / (one + theta * other), other / (other + theta * one)
    return win, loss, (theta**2 - 1) * one * other / ((one + theta * other) * (other + theta * one))


def written_out(chosen, rejected, labels: PairLabels, model: str, parameter: float | None) -> torch.Tensor:
    win, loss, tie = probabilities(chosen, rejected, model, parameter)
    if tie is None:
        target = labels.chosen + labels.tie / 2
        return -(target * win.log() + (1 - target) * loss.log())
    rest = 1 - labels.chosen - labels.tie
    return -(labels.chosen * win.log() + rest * loss.log() + labels.tie * tie.log())


@pytest.mark.parametrize(("model", "parameter"), MODELS)
def test_values_and_gradients_are_those_of_the_probabilities(model, parameter):
    found, expected = [], []
    for out in (found, expected):
        chosen = (MARGINS / 2 + 0.4).requires_grad_()
        rejected = (0.4 - MARGINS / 2).requires_grad_()
        if out is found:
            losses = preference_loss(chosen - rejected, LABELS, model, parameter)
        else:
            losses = written_out(chosen, rejected, LABELS, model, parameter)
        weights = torch.arange(1.0, 8.0, dtype=torch.float64)
        out += [losses.detach(), *torch.autograd.grad((losses * weights).sum(), (chosen, rejected))]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("model", "parameter"), MODELS[1:])
def test_the_outcomes_of_a_tie_model_are_all_there_are(model, parameter):
    outcomes = torch.stack(outcome_log_probs(MARGINS, model, parameter)).exp()
    torch.testing.assert_close(outcomes.sum(0), torch.ones(7, dtype=torch.float64))
    if parameter is None:  # equal rewards tie in one of two cases
        assert float(outcomes[2, 3]) == pytest.approx(0.5)


@pytest.mark.parametrize("model", ["davidson", "rao_kupper"])
def test_without_ties_in_the_model_it_is_bradley_terry(model):
    labels = PairLabels(LABELS.chosen, torch.zeros(7, dtype=torch.float64))
    barely = 1e-12 if model == "davidson" else 1 + 1e-12
    torch.testing.assert_close(
        preference_loss(MARGINS, labels, model, barely), preference_loss(MARGINS, labels), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(("model", "parameter"), MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_apart_rewards_give_finite_losses_and_gradients(model, parameter, dtype):
    margins = torch.tensor([-1e4, 1e4, -1e4, 1e4, 1e4], dtype=dtype, requires_grad=True)
    labels = PairLabels(torch.tensor([1.0, 0, 0, 1, 0], dtype=dtype), torch.tensor([0.0, 0, 1, 0, 1], dtype=dtype))
    losses = preference_loss(margins, labels, model, parameter)
    (gradient,) = torch.autograd.grad(losses.sum(), margins)
    assert losses.isfinite().all() and gradient.isfinite().all()
    assert losses[:2].tolist() == pytest.approx([1e4, 1e4], rel=1e-2)


def test_smoothing_moves_shares_of_winners_and_leaves_ties():
    smoothed = LABELS.smoothed(0.1)
    for index in range(7):
        chosen, tie = float(LABELS.chosen[index]), float(LABELS.tie[index])
        assert float(smoothed.chosen[index]) == pytest.approx(0.9 * chosen + 0.1 * (1 - chosen - tie))
        assert float(smoothed.tie[index]) == tie
    plain = PairLabels(torch.ones(1), torch.zeros(1)).smoothed(0.2)
    margin = torch.tensor([1.3])
    expected = -0.8 * math.log(1 / (1 + math.exp(-1.3))) - 0.2 * math.log(1 / (1 + math.exp(1.3)))
    assert float(preference_loss(margin, plain)) == pytest.approx(expected, rel=1e-6)


def test_a_majority_is_a_label_without_doubt():
    assert LABELS.majority().chosen.tolist() == [0, 0, 0.5, 0.5, 1, 0, 1]
    assert not LABELS.majority().tie.any()
