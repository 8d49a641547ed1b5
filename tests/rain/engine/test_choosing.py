"""Tokens of an expansion."""

import pytest
import torch

from hf_interdistill.rain.config import RainConfig
from hf_interdistill.rain.engine.sampler import choose_tokens
from hf_interdistill.utils.random_streams import stream_key


def test_tokens_are_chosen_among_the_likeliest_at_the_temperature():
    config = RainConfig(sample_top_k=3, expansion_temperature=0.5)
    values = torch.tensor([[0.0, -0.5, -1.0, -1.5]], dtype=torch.float64).expand(20_000, -1)
    ids = torch.tensor([[40, 30, 20, 10]]).expand(20_000, -1)
    chosen = choose_tokens(values, ids, [stream_key(0, number) for number in range(20_000)], config)
    expected = torch.log_softmax(torch.tensor([0.0, -1.0, -2.0], dtype=torch.float64), dim=0)
    logs = dict(chosen)
    assert set(logs) == {40, 30, 20}
    assert [logs[token] for token in (40, 30, 20)] == pytest.approx(expected.tolist())
    shares = [sum(token == each for token, _ in chosen) / len(chosen) for each in (40, 30, 20)]
    assert shares == pytest.approx(expected.exp().tolist(), abs=0.015)
    # Without a stream the likeliest is taken, and what is missing is never chosen.
    assert choose_tokens(values[:1], ids[:1], [None], config) == [(40, pytest.approx(expected[0].item()))]
    lone = torch.tensor([[0.0, -torch.inf, -torch.inf]], dtype=torch.float64).expand(50, -1)
    assert set(choose_tokens(lone, ids[:50, :3], list(range(50)), config)) == {(40, 0.0)}
