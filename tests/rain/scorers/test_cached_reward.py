"""A reward model that reads only what is new: the same values, fewer tokens, and what it cannot read is refused."""

from __future__ import annotations

import pytest
import torch
from support.models import build_encoder, build_student
from support.rain import PROMPTS, build_causal, rain
from support.tokenizers import tokenizer_of
from transformers import AutoModelForSequenceClassification

from hf_interdistill import RainConfig, RewardScorer
from hf_interdistill.rain.api.jobs import RainJobConfig
from hf_interdistill.rain.scorers.base import Exchange, ScorerError
from hf_interdistill.rain.scorers.builtin import RewardModelScorer
from hf_interdistill.rain.scorers.cached_reward import CachedRewardScorer

MESSAGES = [{"role": "user", "content": "How do I bake bread?"}]
FAMILIES = ["llama", "qwen3", "gpt2", "mistral"]


def reward_of(family: str = "llama", **changes) -> RewardScorer:
    return RewardScorer(build_student(family).eval(), tokenizer_of("bytes"), **changes)


def exchanges(prompt) -> list[list[Exchange]]:
    """Calls of texts that grow, as searches ask for them."""
    texts = [[" a", " Well", ""], [" Well, you", " Well; no"], [" Well, you need"], [" Another text altogether", " a"]]
    return [[Exchange(prompt, text) for text in call] for call in texts]


@pytest.mark.parametrize("prompt", ["How do I bake bread?", MESSAGES], ids=["text", "messages"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_those_of_whole_texts(family, prompt):
    reward = reward_of(family)
    plain, cached = (kind(reward, scale=5.0).bind(None, None) for kind in (RewardModelScorer, CachedRewardScorer))
    cached.start_search()
    for call in exchanges(prompt):
        call = [each for each in call if each.completion or isinstance(prompt, list)]
        expected, _ = plain.score_batch(call)
        values, _ = cached.score_batch(call)
        assert values == pytest.approx(expected, abs=1e-5)
        assert len(set(values)) == len(values)


def test_every_token_of_a_growing_text_is_read_once():
    reward = reward_of()
    cached = CachedRewardScorer(reward).bind(None, None)
    cached.start_search()
    seen: set[tuple] = set()
    for number in range(1, 9):
        text = " one two three four five six seven eight"[: 5 * number]
        _, costs = cached.score_batch([Exchange("Count:", text), Exchange("Count:", text + "!")])
        rows = reward.encode_rows(["Count:"] * 2, [text, text + "!"])
        new = {tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)} - seen
        ends = {tuple(row) for row in rows} - new  # a whole text that was read before gives its end again
        assert costs.total_tokens == len(new | ends) and costs.forward_passes == 1
        seen |= new
    assert costs.total_tokens < 0.5 * len(rows[1])


def test_a_reward_at_padding_is_read_where_the_model_reads_it():
    """EOS is padding here, and closes every plain text: transformers reads the reward one token earlier."""
    tokenizer = tokenizer_of("bytes")
    tokenizer.pad_token = tokenizer.eos_token
    model = build_student().eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    reward = RewardScorer(model, tokenizer)
    call = exchanges("Tell me")[1]
    expected = RewardModelScorer(reward, scale=5.0).score_batch(call)[0]
    assert CachedRewardScorer(reward, scale=5.0).score_batch(call)[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("strategy", ["rain", "args", "beam"])
def test_searches_give_the_same_tokens_for_fewer_tokens_read(strategy):
    model, tokenizer, reward = build_causal(), tokenizer_of("bytes"), reward_of()
    config = RainConfig.resolve(
        {"seed": 1, "candidates": 3, **({"iterations": 6} if strategy == "rain" else {})}, strategy
    )
    outputs = [
        rain(
            *(model, tokenizer, PROMPTS),
            strategy=strategy,
            rain_config=config,
            rain_scorer=kind(reward, scale=5.0),
            max_new_tokens=12,
        )
        for kind in (RewardModelScorer, CachedRewardScorer)
    ]
    assert [each.tokens for each in outputs[0].rain] == [each.tokens for each in outputs[1].rain]
    whole, cached = (each.rain_totals["forward_tokens"] for each in outputs)
    assert cached < 0.7 * whole


def test_weights_that_change_between_searches_are_seen():
    reward = reward_of()
    cached = CachedRewardScorer(reward, scale=5.0)
    call = exchanges("Tell me")[0][:2]
    values = []
    for _ in range(2):
        own = cached.bind(None, None)
        own.start_search()
        values.append(own.score_batch(call)[0])
        with torch.no_grad():
            reward.model.score.weight.mul_(-1.0)
    assert values[1] == pytest.approx([-value for value in values[0]], abs=1e-5)


def test_what_cannot_keep_what_it_read_is_refused():
    encoder, tokenizer = build_encoder()
    config = encoder.config
    config.num_labels = 1
    encoder = RewardScorer(AutoModelForSequenceClassification.from_config(config).eval(), tokenizer)
    for reward in (encoder, lambda prompts, completions: [0.0] * len(prompts)):
        with pytest.raises(ValueError, match="only a `RewardScorer` of a decoder can keep what it has read"):
            CachedRewardScorer(reward)
    other = reward_of()
    other.model.score = torch.nn.Sequential(other.model.score)
    with pytest.raises(ValueError, match="LlamaForSequenceClassification has no linear head named `score`"):
        CachedRewardScorer(other)


def test_its_errors_are_those_of_scorers():
    with pytest.raises(ScorerError, match=r"CachedRewardScorer raised ValueError: .*more than max_length=4"):
        CachedRewardScorer(reward_of(max_length=4)).score_batch(exchanges("Tell me")[2])
    with pytest.raises(ValueError, match="`scale` is 0"):
        CachedRewardScorer(reward_of(), scale=0)


@pytest.mark.parametrize("settings", [{}, {"scorer": "reward", "reward_model": "r", "reward_server": "http://x:1"}])
def test_a_job_without_a_reward_model_refuses_the_option(settings):
    with pytest.raises(ValueError, match="`reward_cache` changes nothing without a reward model that is loaded here"):
        RainJobConfig(model="m", prompts="p", output="o", reward_cache=True, **settings)
