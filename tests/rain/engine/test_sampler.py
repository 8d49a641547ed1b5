"""The random streams of the search, and the tokens that expansions choose with them."""

import pytest
import torch

from hf_interdistill.rain.config import RainConfig
from hf_interdistill.rain.engine import sampler as sampling
from hf_interdistill.rain.engine.sampler import _NEAR, _gumbel, _quick_gumbel, choose_tokens, sample
from hf_interdistill.utils.random_streams import hash_bits, stream_key


def test_noise_is_uniform_and_has_no_pattern():
    keys = torch.tensor([[stream_key(0, "a")], [stream_key(0, "b")]])
    noise = (hash_bits(keys, torch.arange(20_000).unsqueeze(0)).double() + 0.5) / 2**53
    assert abs(noise.mean().item() - 0.5) < 0.005
    assert abs(noise.var().item() - 1 / 12) < 0.002
    assert abs(torch.corrcoef(noise)[0, 1].item()) < 0.02
    assert abs(torch.corrcoef(torch.stack([noise[0, 1:], noise[0, :-1]]))[0, 1].item()) < 0.02
    assert noise.min() > 0 and noise.max() < 1


def test_draws_follow_the_distribution():
    scores = torch.log(torch.tensor([0.5, 0.3, 0.2, 0.0])).repeat(20_000, 1)
    drawn = sample(scores, [stream_key(1, number) for number in range(20_000)])
    shares = torch.bincount(drawn, minlength=4) / 20_000
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.2, 0.0]), atol=0.015)
    # Only the tokens count, not where they stand.
    order = torch.tensor([[2, 0, 1]]).expand(100, 3)
    again = sample(scores[:100].gather(1, order), [stream_key(1, number) for number in range(100)], order)
    assert torch.equal(order[0][again], drawn[:100])


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_draws_are_those_of_exact_noise_over_all_columns(spread):
    scores = spread * torch.randn(64, 3_000, generator=torch.Generator().manual_seed(0))
    scores[:, ::7] = -torch.inf
    keys = [stream_key(2, number) for number in range(64)]
    uniform = (hash_bits(torch.tensor(keys).unsqueeze(1), torch.arange(3_000).unsqueeze(0)).double() + 0.5) / 2**53
    exact = (scores.double() - (-uniform.log()).log()).argmax(dim=-1)
    assert torch.equal(sample(scores, keys), exact)


def test_draws_of_odd_rows():
    scores = torch.full((2, 100), -torch.inf)
    scores[0, 7], scores[1, 9] = torch.inf, -200.0
    assert sample(scores, [1, 2]).tolist() == [7, 9]


def test_draws_are_the_same_a_few_rows_at_a_time(monkeypatch):
    scores, keys = torch.randn(10, 300), [stream_key(3, number) for number in range(10)]
    ids = torch.arange(300).flip(0).expand(10, 300)
    whole, renamed = sampling._sample_rows(scores, keys, None), sample(scores, keys, ids)
    monkeypatch.setattr(sampling, "_AT_ONCE", 1_000)
    assert sampling._sample_rows(scores, keys, None) == whole and torch.equal(sample(scores, keys, ids), renamed)
    assert sample(scores[:0], []).shape == (0,)


def test_fast_noise_is_within_its_error_bound():
    bits = torch.tensor(
        [0, 1, 2, 1 << 20, 1 << 28, 1 << 29, 1 << 52, (1 << 53) - (1 << 29), (1 << 53) - 2, (1 << 53) - 1]
    )
    exact, quick = _gumbel(bits), _quick_gumbel(bits).double()
    assert exact.isfinite().all() and quick.isfinite().all()
    assert (exact - quick).min() > -1e-3 and (exact - quick).max() < 0.83 < _NEAR


def test_scores_that_are_not_numbers_are_reported():
    with pytest.raises(ValueError, match="scores hold NaN"):
        sample(torch.tensor([[0.0, 1.0], [0.0, torch.nan]]), [1, 2])


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
