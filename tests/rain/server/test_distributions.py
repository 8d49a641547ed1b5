"""Sampled token sets and rollouts have the distribution of a search in process: exact probabilities by plain torch."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

import pytest
import torch
from support.rain import build_causal, quick_config
from support.vllm_server import VllmLike, served

from hf_interdistill.rain.engine.stopping import StopChecker, StopConditions
from hf_interdistill.rain.search.requests import Expansion
from hf_interdistill.rain.search.search import weight_candidates
from hf_interdistill.rain.search.tree import Candidate
from hf_interdistill.rain.server.client import CompletionsClient
from hf_interdistill.rain.server.decoding import ServedDecoding
from hf_interdistill.rain.server.engine import rollout_stop_tokens
from hf_interdistill.rain.server.sampling import ServedSampling
from hf_interdistill.utils.async_calls import run
from hf_interdistill.utils.server_pool import ModelServers

PROMPT = (40, 41, 300, 17)
GENERATED = (55,)


def next_probabilities(model, tokens, temperature=1.0, top_k=None, top_p=1.0) -> dict[int, float]:
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([[*PROMPT, *GENERATED, *tokens]])).logits[0, -1].double() / temperature
    values, ids = scores.sort(descending=True)
    values, ids = values[:top_k], ids[:top_k]
    shares = values.softmax(-1)
    kept = (shares.cumsum(-1) - shares) < top_p
    shares = shares[kept] / shares[kept].sum()
    return dict(zip(ids[kept].tolist(), shares.tolist(), strict=True))


def decoding(url, tokenizer, key, config, sampling, is_processed=False, eos=()):
    client = CompletionsClient(ModelServers(url), "lm")
    client.is_processed = is_processed
    rules = StopChecker(PROMPT, tokenizer, config, StopConditions(20, frozenset(eos)))
    stops = rollout_stop_tokens(tokenizer, config)
    return ServedDecoding(client, rules, key, config, sampling, stop_tokens=stops)


def assert_drawn_from(counts: Counter, wanted: dict, total: int) -> None:
    """Chi-squared, at four standard deviations; what is never drawn must be improbable."""
    assert set(counts) <= set(wanted), set(counts) - set(wanted)
    kept = {key: share for key, share in wanted.items() if share * total >= 5}
    rest = 1 - sum(kept.values())
    cells = [(counts[key], share * total) for key, share in kept.items()]
    if rest * total >= 5:
        cells.append((total - sum(counts[key] for key in kept), rest * total))
    statistic = sum((found - expected) ** 2 / expected for found, expected in cells)
    freedom = len(cells) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom) + 4, (statistic, freedom)


SAMPLINGS = [
    (ServedSampling(), {"expansion_temperature": 1.5, "sample_top_k": 4}),
    (ServedSampling(temperature=0.7, top_k=3), {"expansion_temperature": 2.0, "sample_top_k": 4}),
    (ServedSampling(temperature=1.3, top_k=4, top_p=0.8), {"sample_top_k": 4}),
]


@pytest.fixture(scope="module")
def flat():
    """A model whose likeliest tokens are about as likely as one another."""
    model = build_causal()
    with torch.no_grad():
        model.lm_head.weight.mul_(0.3)
    return model


@pytest.mark.parametrize("is_processed", [False, True])
@pytest.mark.parametrize(("sampling", "changes"), SAMPLINGS)
def test_sampled_token_sets(flat, tokenizer, sampling, changes, is_processed):
    config = quick_config(edge_lengths=(2,), **changes)
    top_k = min(sampling.top_k or 99, config.sample_top_k)

    def distribution(tokens):
        heat = sampling.temperature * config.expansion_temperature
        return next_probabilities(flat, tokens, heat, top_k, sampling.top_p)

    wanted = {(a, b): p * q for a, p in distribution(()).items() for b, q in distribution((a,)).items()}
    draws, seeds = tuple(range(300)), range(4)

    async def sample(url):
        found = []
        for seed in seeds:
            each = decoding(url, tokenizer, seed, config, sampling, is_processed)
            async with each.client.servers.connected():
                found.append(await each.token_sets(GENERATED, Expansion(2, 300, True, draws)))
        return found

    with served(VllmLike(flat, tokenizer, is_processed=is_processed)) as url:
        sets = run(sample(url))
    counts = Counter(tokens for each in sets for tokens, _ in each[1:])
    assert_drawn_from(counts, wanted, len(draws) * len(seeds))
    for tokens, log_prob in sets[0]:
        assert math.exp(log_prob) == pytest.approx(wanted[tokens], rel=1e-4)
    greedy = max(distribution(()), key=distribution(()).get)
    assert sets[0][0][0][0] == greedy


def test_candidates_are_weighed_as_in_process(flat, tokenizer):
    config, sampling = quick_config(edge_lengths=(2,), sample_top_k=3), ServedSampling()

    async def expand(url):
        each = decoding(url, tokenizer, 5, config, sampling)
        async with each.client.servers.connected():
            expansion = Expansion(2, 6, True, tuple(range(5)))
            node = type("Node", (), {"tokens_from_origin": lambda self: GENERATED})()
            return await each.run((node, expansion)), await each.token_sets(GENERATED, expansion)

    with served(VllmLike(flat, tokenizer)) as url:
        candidates, sets = run(expand(url))
    first = [Candidate(tokens, math.exp(log_prob)) for tokens, log_prob in sets]
    assert candidates == weight_candidates(tuple(first[:1]), first[1:])
    assert len({each.tokens for each in candidates}) == len(candidates)


@pytest.mark.parametrize("sampling", [ServedSampling(), ServedSampling(0.8, 6, 0.9)])
def test_rollouts(flat, tokenizer, sampling):
    config = quick_config(rollout_max_tokens=2)
    stops = set(rollout_stop_tokens(tokenizer, config))

    def distribution(tokens):
        return next_probabilities(flat, tokens, sampling.temperature, sampling.top_k, sampling.top_p)

    first = distribution(())
    ends = {token for token in first if token in stops} | {max(first, key=first.get)}  # this one as EOS
    wanted: dict[tuple, float] = {}
    for a, p in first.items():
        if a in ends:
            wanted[(a,)] = p
        elif p > 1e-3:
            wanted |= {(a, b): p * q for b, q in distribution((a,)).items()}
        else:
            wanted[(a, None)] = p
    total = 250

    async def sample(url):
        each = [decoding(url, tokenizer, key, config, sampling, eos=ends) for key in range(total)]
        async with each[0].client.servers.connected():
            for one in each[1:]:
                one.client = each[0].client
            return await asyncio.gather(*(one.roll_out(GENERATED) for one in each))

    with served(VllmLike(flat, tokenizer)) as url:
        rollouts = run(sample(url))
    counts = Counter(tokens if tokens in wanted else (tokens[0], None) for tokens in rollouts)
    assert_drawn_from(counts, wanted, total)
    assert 0 < sum(len(tokens) == 1 for tokens in rollouts) < total


def test_a_rollout_goes_on_where_the_server_stopped_too_early(flat, tokenizer):
    """A stop string in the server's text that is none here: it is asked to continue."""
    config = quick_config(rollout_max_tokens=6, rollout_stops="")
    sampling = ServedSampling(1e-4)

    async def roll(url, strings):
        each = decoding(url, tokenizer, 1, config, sampling)
        each.stop_strings = strings
        async with each.client.servers.connected():
            return await each.roll_out(GENERATED), each.costs["requests"]

    with served(VllmLike(flat, tokenizer)) as url:
        whole, one = run(roll(url, []))
        text = tokenizer.decode(whole[:2], skip_special_tokens=True)
        pieces, several = run(roll(url, [text]))
    assert one == 1 < several
    assert pieces == whole and len(whole) == 6
