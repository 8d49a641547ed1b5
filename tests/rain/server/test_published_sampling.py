"""What published generation configs say of sampling: kept exactly, or refused with the way to override it."""

from __future__ import annotations

import functools
import math
from collections import Counter

import pytest
import torch
from support.rain import build_causal, likes_short_words, quick_config
from support.vllm_server import VllmLike, served
from transformers import GenerationConfig

from hf_interdistill import RainClient
from hf_interdistill.rain.api.inputs import prepare_generation
from hf_interdistill.rain.api.served_generation import ServedGeneration
from hf_interdistill.rain.config import RainConfig
from hf_interdistill.rain.engine.stopping import StopChecker, StopConditions
from hf_interdistill.rain.search.requests import Expansion
from hf_interdistill.rain.server.client import CompletionsClient
from hf_interdistill.rain.server.decoding import ServedDecoding
from hf_interdistill.rain.server.sampling import ServedSampling
from hf_interdistill.utils.async_calls import run
from hf_interdistill.utils.server_pool import ModelServers

PUBLISHED = {
    "llama-3.1": {"temperature": 0.6, "top_p": 0.9},
    "qwen2.5": {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
    "qwen3": {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
    "gemma-3": {"top_k": 64, "top_p": 0.95, "cache_implementation": "hybrid"},
}
PROMPT, GENERATED = (40, 41, 300, 17), (55,)


def own(name: str) -> GenerationConfig:
    return GenerationConfig(do_sample=True, pad_token_id=3, eos_token_id=[2, 4], **PUBLISHED[name])


@functools.cache
def peaked(sharpness: float):
    """A model whose nuclei are cut within the 15 likeliest tokens."""
    model = build_causal()
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness)
    return model


SHARPNESS = {"llama-3.1": 2.7, "qwen2.5": 2.0, "qwen3": 2.7, "gemma-3": 6.0}


def in_process(model, config: RainConfig, generation, tokens) -> dict[int, float]:
    """What a token of a set is drawn from in process: transformers' processors, then the likeliest of what is left."""
    ids = torch.tensor([[*PROMPT, *GENERATED, *tokens]])
    _, processors = prepare_generation(model, generation, ids, new_tokens=20)
    with torch.no_grad():
        scores = model(input_ids=ids).logits[:, -1].float()
    for processor in processors:
        scores = processor(ids, scores)
    values, found = scores[0].double().sort(descending=True)
    values, found = values[: config.sample_top_k], found[: config.sample_top_k]
    shares = (values / config.expansion_temperature).softmax(-1)
    return {token: share for token, share in zip(found.tolist(), shares.tolist(), strict=True) if share > 0}


def drawn(model, tokenizer, config, sampling, is_processed, draws: int):
    """Token sets of a server."""

    async def sample(url):
        client = CompletionsClient(ModelServers(url), "lm")
        client.is_processed = is_processed
        rules = StopChecker(PROMPT, tokenizer, config, StopConditions(20))
        decoding = ServedDecoding(client, rules, 7, config, sampling)
        async with client.servers.connected():
            return await decoding.token_sets(GENERATED, Expansion(2, draws + 1, True, tuple(range(draws))))

    most = 64 if sampling.top_k is None else max(64, sampling.top_k)
    with served(VllmLike(model, tokenizer, is_processed=is_processed, max_logprobs=most)) as url:
        return run(sample(url))


def assert_drawn_from(found: list[tuple], wanted: dict[tuple, float]) -> None:
    """Nothing else is drawn, and each token of a set by chi-squared, at four standard deviations."""
    assert set(found) <= set(wanted), set(found) - set(wanted)
    for place in range(2):
        shares: Counter = Counter()
        for tokens, share in wanted.items():
            shares[tokens[place]] += share * len(found)
        counts = Counter(tokens[place] for tokens in found)
        cells = [(counts[token], share) for token, share in shares.items() if share >= 5]
        rest = len(found) - sum(share for _, share in cells)
        if rest >= 5:
            cells.append((len(found) - sum(count for count, _ in cells), rest))
        freedom = len(cells) - 1
        statistic = sum((count - share) ** 2 / share for count, share in cells)
        assert freedom > 2
        assert statistic < freedom + 4 * math.sqrt(2 * freedom) + 4, (statistic, freedom)


@pytest.mark.parametrize("is_processed", [False, True])
@pytest.mark.parametrize("heat", [1.0, 2.0])
@pytest.mark.parametrize("name", PUBLISHED)
def test_token_sets_are_drawn_as_in_process(tokenizer, name, heat, is_processed):
    model, config = peaked(SHARPNESS[name]), quick_config(edge_lengths=(2,), expansion_temperature=heat)
    generation = own(name)
    sampling = ServedGeneration.resolve({}, generation, tokenizer).sampling
    if sampling.repetition_penalty != 1 and not is_processed:
        with pytest.raises(ValueError, match="repetition_penalty"):
            sampling.check_processed(config, is_processed)
        return

    def distribution(tokens):
        return in_process(model, config, generation, tokens)

    wanted = {(a, b): p * q for a, p in distribution(()).items() for b, q in distribution((a,)).items()}
    assert 3 < len(distribution(())) < config.sample_top_k
    sets = drawn(model, tokenizer, config, sampling, is_processed, 400)
    assert_drawn_from([tokens for tokens, _ in sets[1:]], wanted)
    for tokens, log_prob in sets:
        assert math.exp(log_prob) == pytest.approx(wanted[tokens], rel=1e-3)


@pytest.mark.parametrize("is_processed", [False, True])
def test_top_p_of_all_tokens_is_drawn_as_in_process(tokenizer, is_processed):
    """`top_k: 0` with a temperature of 1: log probabilities are of the whole vocabulary."""
    model, config = peaked(4.5), quick_config(edge_lengths=(2,))
    generation = GenerationConfig(do_sample=True, top_k=0, top_p=0.8)
    sampling = ServedGeneration.resolve({}, generation, tokenizer).sampling
    assert sampling.top_k is None

    def distribution(tokens):
        return in_process(model, config, generation, tokens)

    wanted = {(a, b): p * q for a, p in distribution(()).items() for b, q in distribution((a,)).items()}
    assert 3 < len(distribution(())) < config.sample_top_k
    sets = drawn(model, tokenizer, config, sampling, is_processed, 400)
    assert_drawn_from([tokens for tokens, _ in sets[1:]], wanted)


@pytest.mark.parametrize("preset", ["fast", "harmless"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_searches_run_with_published_configs(model, tokenizer, name, preset):
    quick = {"iterations": 3, "extra_iterations": 1, "candidates": 4, "rollout_max_tokens": 4}
    config = RainConfig.preset(preset, **quick, **({"similarity_model": None} if preset == "harmless" else {}))
    needs_flags = VllmLike(model, tokenizer, max_length=2048)
    has_flags = VllmLike(model, tokenizer, max_length=2048, is_processed=True, max_logprobs=64)

    def search(backend, **generation):
        with served(backend) as url:
            client = RainClient(url, "lm", tokenizer, config, likes_short_words, generation_config=own(name))
            return client.generate(["Tell me"], max_new_tokens=14, **generation)[0]

    assert len(search(has_flags).tokens) > 0
    message = {
        "llama-3.1": r"log probabilities of 50 tokens.*`top_p` is 0.9, from the model's generation config, among the "
        r"`top_k` \(50\).*`top_p=1.0`, or `top_k` of at most 1.*--max-logprobs 50",
        "qwen2.5": r"`repetition_penalty` is 1.05, from the model's generation config, but.*--logprobs-mode "
        r"processed_logprobs.*`repetition_penalty=1.0`",
        "gemma-3": r"log probabilities of 64 tokens.*`top_p` is 0.95, from the model's.*--max-logprobs 64",
    }.get(name)
    if message is not None:
        with pytest.raises(ValueError, match=message):
            search(needs_flags)
    for override in (None, 1.0):
        found = search(needs_flags, top_p=override, repetition_penalty=override)
        assert found.tokens


def test_none_overrides_the_models_config(tokenizer):
    config = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, top_k=20, min_p=0.1, eos_token_id=[5, 6])
    plain = {"temperature": None, "top_p": None, "top_k": None, "min_p": None, "eos_token_id": None}
    options = ServedGeneration.resolve(plain, config, tokenizer)
    assert options.sampling == ServedSampling(1.0, 50, 1.0, 1.0, options.sampling.inherited)
    assert options.eos_token_ids == {5, 6}
    with pytest.raises(ValueError, match=r"`min_p` is 0.1, from the model's generation config,.*Pass `min_p=None`"):
        ServedGeneration.resolve({}, config, tokenizer)
    kept = ServedGeneration.resolve(GenerationConfig(min_p=0.0, top_k=5), config, tokenizer).sampling
    assert (kept.temperature, kept.top_k, kept.top_p) == (0.6, 5, 0.9)


def test_a_top_p_that_needs_the_whole_vocabulary_is_refused(model, tokenizer):
    config = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, top_k=0)
    with served(VllmLike(model, tokenizer)) as url:
        client = RainClient(url, "lm", tokenizer, quick_config(), likes_short_words, generation_config=config)
        with pytest.raises(ValueError, match=r"`top_p` is 0.9, from the model's.*Pass `top_k`, or `top_p=1.0`"):
            client.generate(["Tell me"], max_new_tokens=2)
        assert client.generate(["Tell me"], max_new_tokens=2, top_p=1.0)
