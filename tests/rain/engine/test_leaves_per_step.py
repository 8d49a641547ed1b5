"""Several leaves per step with models: all scorers, prompts in flight, fewer passes, the same results by seed."""

import pytest
from support.judges import SHORT
from support.rain import PROMPTS, build_causal, letters, likes_short_words, quick_config, search
from support.rain import tree_shape as shape
from support.tokenizers import tokenizer_of

from hf_interdistill.rain.scorers.self_evaluation import SelfEvaluationScorer


def likes_vowels(prompts, completions):
    """A reward model."""
    return [
        sum(each in "aeiou" for each in text) / 4 - len(prompt) % 3
        for prompt, text in zip(prompts, completions, strict=True)
    ]


SCORERS = {
    "function": likes_short_words,
    "reward": likes_vowels,
    "self": SelfEvaluationScorer(SHORT, calibrate=True),
}


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_trees_are_the_same_alone_and_in_a_batch_and_by_seed(family, scorer):
    model, tokenizer = build_causal(family), tokenizer_of("bytes")
    config = quick_config(leaves_per_step=3, similarity_threshold=0.9, iterations=10)

    def trees(prompts, **changes):
        output = search(model, tokenizer, prompts, config.replace(**changes), SCORERS[scorer], embedder=letters)
        return [shape(record.tree) for record in output.rain]

    together = trees(PROMPTS)
    assert trees(PROMPTS) == together and trees(PROMPTS, num_speculative=0) == together
    assert trees(PROMPTS, max_batch_size=1) == together
    assert trees(PROMPTS[1:2]) == together[1:2]
    assert trees(PROMPTS, seed=9) != together
    assert trees(PROMPTS, leaves_per_step=1) != together


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_pass_and_a_scorer_call_serve_several_iterations(scorer, model, tokenizer):
    settings = {"iterations": 24, "num_speculative": 0, "value_threshold": 1.0, "candidates": 6}
    costs = []
    for leaves in (1, 8):
        config = quick_config(**settings, leaves_per_step=leaves)
        (record,) = search(model, tokenizer, PROMPTS[:1], config, SCORERS[scorer], max_new_tokens=4).rain
        costs.append(record.stats["forward_passes"] / record.stats["iterations"])
    assert costs[1] < costs[0] / 2


def test_a_step_does_not_read_more_than_it_needs(model, tokenizer):
    """Without speculation, tokens per iteration stay about the same: a wrong forecast there is not."""
    tokens = []
    for leaves in (1, 6):
        config = quick_config(iterations=24, num_speculative=0, value_threshold=1.0, leaves_per_step=leaves)
        (record,) = search(model, tokenizer, PROMPTS[:1], config, max_new_tokens=4).rain
        tokens.append(record.stats["forward_tokens"] / record.stats["iterations"])
    assert tokens[1] < 1.3 * tokens[0]


def test_the_fast_preset_searches(model, tokenizer):
    config = quick_config().preset("fast", seed=1)
    output = search(model, tokenizer, PROMPTS, config)
    assert all(len(record.tokens) == 8 for record in output.rain)
    for record in output.rain:
        assert record.stats["iterations"] <= 12 * 8
        assert record.tree.root["true_visits"] <= 12
