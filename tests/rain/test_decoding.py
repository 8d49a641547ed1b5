"""What is made of the logits of a forward pass."""

import pytest
import torch

from hf_interdistill.rain.config import RainConfig
from hf_interdistill.rain.engine.model_runner import _side_by_side, choose
from hf_interdistill.rain.engine.sampler import stream_key


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [1, 2], [2, 1], [0, 2], [3, 3]])
def test_rows_stand_side_by_side(order):
    table = torch.randn(4, 7)
    rows = [table[i] for i in order]
    joined = _side_by_side(rows)
    assert torch.equal(joined, torch.stack(rows))
    is_view = joined.untyped_storage().data_ptr() == table.untyped_storage().data_ptr()
    assert is_view == (order in ([0, 1, 2, 3], [1, 2]))


def test_rows_of_two_tensors_and_of_strided_ones_are_copied():
    first, second = torch.randn(2, 5), torch.randn(1, 5)
    strided = torch.randn(5, 2).T
    assert torch.equal(_side_by_side([first[1], second[0]]), torch.stack([first[1], second[0]]))
    assert torch.equal(_side_by_side([strided[0], strided[1]]), strided)


def test_tokens_are_chosen_among_the_likeliest_at_the_temperature():
    config = RainConfig(sample_top_k=3, expansion_temperature=0.5)
    values = torch.tensor([[0.0, -0.5, -1.0, -1.5]], dtype=torch.float64).expand(20_000, -1)
    ids = torch.tensor([[40, 30, 20, 10]]).expand(20_000, -1)
    chosen = choose(values, ids, [stream_key(0, number) for number in range(20_000)], config)
    expected = torch.log_softmax(torch.tensor([0.0, -1.0, -2.0], dtype=torch.float64), dim=0)
    logs = dict(chosen)
    assert set(logs) == {40, 30, 20}
    assert [logs[token] for token in (40, 30, 20)] == pytest.approx(expected.tolist())
    shares = [sum(token == each for token, _ in chosen) / len(chosen) for each in (40, 30, 20)]
    assert shares == pytest.approx(expected.exp().tolist(), abs=0.015)
    # Without a stream the likeliest is taken, and what is missing is never chosen.
    assert choose(values[:1], ids[:1], [None], config) == [(40, pytest.approx(expected[0].item()))]
    lone = torch.tensor([[0.0, -torch.inf, -torch.inf]], dtype=torch.float64).expand(50, -1)
    assert set(choose(lone, ids[:50, :3], list(range(50)), config)) == {(40, 0.0)}
    assert choose(values[:0], ids[:0], [], config) == []
