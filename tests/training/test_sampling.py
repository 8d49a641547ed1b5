"""Batches of examples of similar length."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hf_interdistill.training.sampling import SimilarLengths

LENGTHS = torch.randint(1, 200, (103,), generator=torch.Generator().manual_seed(0)).tolist()


def sampler_of(**changes) -> SimilarLengths:
    settings = {"train_batch_size": 8, "gradient_accumulation_steps": 1, "world_size": 1, "seed": 1, "data_seed": None}
    return SimilarLengths(LENGTHS, SimpleNamespace(**{**settings, **changes}))


def test_batches_have_similar_lengths_and_every_example_once():
    sampler = sampler_of()
    epochs = []
    for epoch in (0, 1, 1):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert sorted(epochs[-1]) == list(range(103)) and len(sampler) == 103
    assert epochs[0] != epochs[1] == epochs[2]
    batches = [[LENGTHS[i] for i in epochs[0][start : start + 8]] for start in range(0, 96, 8)]
    spreads = [max(batch) - min(batch) for batch in batches]
    assert sum(spreads) / len(spreads) < 80 < max(LENGTHS) - min(LENGTHS)
    means = [sum(batch) for batch in batches]
    assert means != sorted(means, reverse=True)  # the batches themselves are in random order


@pytest.mark.parametrize("changes", [{"train_batch_size": 2, "gradient_accumulation_steps": 4}, {"world_size": 2}])
def test_a_step_is_one_group(changes):
    """Micro-batches of a step, and the batches of all processes, are of similar length."""
    same = {"train_batch_size": 4} if "world_size" in changes else {}
    assert list(sampler_of(**changes, **same)) == list(sampler_of())


def test_the_order_is_that_of_the_seed():
    torch.manual_seed(5)
    first = list(sampler_of())
    torch.manual_seed(6)
    assert first == list(sampler_of()) == list(sampler_of(seed=7, data_seed=1))
    assert first != list(sampler_of(data_seed=0)) == list(sampler_of(seed=0))
