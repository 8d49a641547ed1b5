"""The length penalty against NumPy's correlation, GRM's losses against a language model's own logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from hf_interdistill.interaction.losses.length import length_correlation
from hf_interdistill.interaction.losses.regularization import regularization_loss, response_log_probs
from hf_interdistill.interaction.prompt_sharing.packing import PackedPairs


def test_the_correlation_is_pearsons_without_the_means_of_pairs():
    rng = np.random.default_rng(0)
    rewards, lengths = rng.normal(size=(2, 9)), rng.integers(1, 50, size=(2, 9))
    expected = np.corrcoef((rewards - rewards.mean(0)).ravel(), (lengths - lengths.mean(0)).ravel())[0, 1]
    margins, differences = torch.tensor(rewards[0] - rewards[1]), torch.tensor(lengths[0] - lengths[1])
    assert float(length_correlation(margins, differences)) == pytest.approx(expected, abs=1e-12)
    swapped = torch.tensor([1, -1, 1, 1, -1, -1, 1, -1, 1])
    assert float(length_correlation(margins * swapped, differences * swapped)) == pytest.approx(expected, abs=1e-12)


def test_its_gradient_is_that_of_the_formula():
    margins = torch.tensor([0.3, -1.2, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([3, -4, 0, 7])
    (found,) = torch.autograd.grad(length_correlation(margins, lengths).abs(), margins)
    d, size = margins.detach(), lengths.double()
    rho = (d * size).sum() / (d.norm() * size.norm())
    expected = rho.sign() * (size / (d.norm() * size.norm()) - rho * d / d.norm() ** 2)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("margins", "lengths"), [([0.0, 0.0], [3, -2]), ([1.0, -2.0], [0, 0])])
def test_equal_rewards_or_lengths_have_no_correlation(margins, lengths):
    margins = torch.tensor(margins, requires_grad=True)
    found = length_correlation(margins, torch.tensor(lengths))
    (gradient,) = torch.autograd.grad(found, margins)
    assert found.item() == 0 and gradient.tolist() == [0, 0]


def pairs():
    """Three pairs of ids with common beginnings of 3, 2 and 1 tokens, padded on the right with 0."""
    rows = [[4, 5, 6, 7, 8, 9], [4, 5, 9, 9], [7, 7], [4, 5, 6, 8], [4, 5, 6, 6, 6], [7, 8, 8]]
    ids = torch.tensor([row + [0] * (6 - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (6 - len(row)) for row in rows])


@pytest.fixture
def language_model():
    set_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=12, **shape)).double()


def written(model, ids, mask) -> torch.Tensor:
    """Log-probabilities of the six responses by transformers' own logits, token by token."""
    logs = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    begins, totals = [3, 2, 1], []
    for row in range(6):
        places = range(begins[row % 3], int(mask[row].sum()))
        totals.append(sum(logs[row, place - 1, ids[row, place]] for place in places))
    return torch.stack(totals).unflatten(0, (2, 3))


@pytest.mark.parametrize("tokens_at_once", [1024, 2])
@pytest.mark.parametrize("loss", ["sft", "dpo"])
def test_grms_losses_are_those_of_the_language_models_logits(loss, tokens_at_once, language_model, monkeypatch):
    monkeypatch.setattr("hf_interdistill.interaction.losses.regularization._TOKENS_AT_ONCE", tokens_at_once)
    ids, mask = pairs()
    log_probs = written(language_model, ids, mask)
    ratio = log_probs[0] if loss == "sft" else log_probs[0] - log_probs[1]
    expected = torch.log1p(torch.exp(-0.3 * ratio))
    weights = list(language_model.parameters())
    wanted = torch.autograd.grad(expected.mean(), weights)
    states = language_model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    head = language_model.lm_head.weight, None
    found = response_log_probs(states, head, ids, mask, is_chosen_only=loss == "sft")
    assert found.shape == (1 if loss == "sft" else 2, 3)
    losses = regularization_loss(found, loss, 0.3)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(torch.autograd.grad(losses.mean(), weights), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_packed_rows_write_the_same(language_model):
    ids, mask = pairs()
    packed = PackedPairs.from_rows(ids, mask)
    dense = torch.zeros(3, 1, *packed.visible.shape[1:]).double().masked_fill(~packed.visible[:, None], -1e300)
    states = language_model.model(
        input_ids=packed.input_ids, attention_mask=dense, position_ids=packed.position_ids
    ).last_hidden_state
    bias = torch.randn(12, generator=torch.Generator().manual_seed(0)).double()
    found = response_log_probs(states, (language_model.lm_head.weight, bias), ids, mask, packed.token_index)
    language_model.lm_head.bias = torch.nn.Parameter(bias)
    torch.testing.assert_close(found.double(), written(language_model, ids, mask), rtol=1e-5, atol=1e-5)
