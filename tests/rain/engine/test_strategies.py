"""The strategies beside the tree search on tiny models: their choices, worked out in plain torch."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from support.rain import COPYING_FAMILIES, PROMPTS, build_causal, encode, likes_short_words, search, separate

from hf_interdistill.rain.config import RainConfig
from hf_interdistill.rain.results.views import walk

STRATEGIES = {
    "args": {"candidates": 6, "reward_weight": 3.0},
    "rad": {"candidates": 6, "reward_weight": 3.0},
    "beam": {"beams": 2, "candidates": 3, "edge_lengths": (3,)},
    "best_of_n": {"candidates": 5},
}


def config_of(strategy: str, **changes) -> RainConfig:
    return RainConfig.from_dict({"strategy": strategy, "seed": 3, **STRATEGIES[strategy], **changes})


def ids_of(tokenizer, prompt: str) -> list[int]:
    return tokenizer(prompt)["input_ids"]


def text_of(tokenizer, tokens) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def token_scores(model, tokenizer, prompt: list[int], generated: list[int], count: int, weight: float):
    """The likeliest next tokens, and log probability + weight x score of the text with each."""
    values, tokens = torch.log_softmax(separate(model, [*prompt, *generated]).double(), -1).topk(count)
    scores = likes_short_words([text_of(tokenizer, [*generated, token]) for token in tokens.tolist()])
    return tokens.tolist(), values + weight * torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize("weight", [0.5, 3.0])
@pytest.mark.parametrize("family", ["llama", "gpt2", *COPYING_FAMILIES])
def test_args_takes_the_token_of_the_best_score(family, weight, tokenizer):
    model = build_causal(family)
    output = search(model, tokenizer, config=config_of("args", reward_weight=weight))
    for prompt, record in zip(PROMPTS, output.rain, strict=True):
        generated: list[int] = []
        for _ in range(8):
            tokens, scores = token_scores(model, tokenizer, ids_of(tokenizer, prompt), generated, 6, weight)
            generated.append(tokens[int(scores.argmax())])
        assert record.tokens == generated
    plain = search(model, tokenizer, config=config_of("args", reward_weight=0.0))
    assert [each.tokens for each in plain.rain] != [each.tokens for each in output.rain]


def test_args_without_weight_is_greedy_decoding(model, tokenizer):
    output = search(model, tokenizer, config=config_of("args", reward_weight=0.0))
    inputs = encode(tokenizer, PROMPTS)
    greedy = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(output.sequences, greedy)


@pytest.mark.parametrize(("strategy", "weight"), [("rad", 0.0), ("rad", 2.0), ("beam", None), ("best_of_n", None)])
def test_tokens_are_sampled_with_the_right_probabilities(strategy, weight, model, tokenizer):
    """One candidate of `beam` and `best_of_n`, and `rad` without weight, are plain sampling from the likeliest."""
    draws, prompt = 1500, PROMPTS[1]
    settings = {"rad": {"candidates": 5, "reward_weight": weight}, "beam": {"beams": 1, "candidates": 1}}
    changes = settings.get(strategy, {"candidates": 1})
    if strategy != "rad":
        changes |= {"sample_top_k": 5}
    config = config_of(strategy, max_batch_size=256, expansion_temperature=0.3, **changes)
    output = search(model, tokenizer, [prompt] * draws, config, max_new_tokens=1)
    counts = Counter(record.tokens[0] for record in output.rain)
    values, tokens = (separate(model, ids_of(tokenizer, prompt)) / 0.3).topk(5)
    if weight:
        values = values + weight * torch.tensor(
            likes_short_words([text_of(tokenizer, [token]) for token in tokens.tolist()])
        )
    shares = dict(zip(tokens.tolist(), values.double().softmax(-1).tolist(), strict=True))
    assert set(counts) <= set(shares) and min(shares.values()) < 0.5 * max(shares.values())
    for token, share in shares.items():
        assert abs(counts[token] / draws - share) < 4 * math.sqrt(share * (1 - share) / draws)


def assert_beams_are_the_best(node_list, beams: int) -> list[int]:
    """Which nodes of a recorded tree are kept, recomputed from the values; returns the tokens of the best text."""
    root = node_list[0][0]
    kept = [(root, ())]
    while any(node["children"] for node, _ in kept):
        pool = [each for each in kept if each[0]["is_terminal"]]
        for node, tokens in kept:
            assert node["is_terminal"] == (not node["children"])
            pool += [(child, (*tokens, *child["tokens"])) for child in node["children"]]
        pool.sort(key=lambda each: -each[0]["value"])
        for node, _ in pool[beams:]:
            assert not node["children"]
        kept = pool[:beams]
    return list(kept[0][1])


@pytest.mark.parametrize(("strategy", "beams"), [("beam", 1), ("beam", 2), ("beam", 3), ("best_of_n", 1)])
def test_the_best_chunks_are_kept(strategy, beams, model, tokenizer):
    changes = {"beams": beams} if strategy == "beam" else {}
    output = search(model, tokenizer, config=config_of(strategy, **changes), max_new_tokens=8)
    for prompt, record in zip(PROMPTS, output.rain, strict=True):
        nodes = list(walk(record.tree.root))
        assert record.tokens == assert_beams_are_the_best(nodes, beams)
        assert len(record.tokens) == 8
        first = record.tree.root["children"]
        assert 1 < len(first) <= {"best_of_n": 5}.get(strategy, 3 * beams)
        for child in first:
            assert len(child["tokens"]) == {"best_of_n": 8}.get(strategy, 3)
            text = list(ids_of(tokenizer, prompt))
            for token in child["tokens"]:
                assert token in separate(model, text).topk(15).indices.tolist()
                text.append(token)
            assert child["value"] == pytest.approx(
                likes_short_words([text_of(tokenizer, child["tokens"])])[0], abs=1e-6
            )


def test_with_one_likely_token_beams_are_greedy_decoding(model, tokenizer):
    greedy = model.generate(**encode(tokenizer, PROMPTS), max_new_tokens=8, do_sample=False)
    for strategy in ("beam", "best_of_n"):
        output = search(model, tokenizer, config=config_of(strategy, sample_top_k=1))
        assert torch.equal(output.sequences, greedy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_results_do_not_depend_on_the_batch_but_on_the_seed(strategy, model, tokenizer):
    together = search(model, tokenizer, config=config_of(strategy), max_new_tokens=10)
    tokens = [record.tokens for record in together.rain]
    for settings in ({"max_batch_size": 1}, {"max_batch_size": 2}):
        again = search(model, tokenizer, config=config_of(strategy, **settings), max_new_tokens=10)
        assert [record.tokens for record in again.rain] == tokens
    alone = search(model, tokenizer, [PROMPTS[2]], config_of(strategy), max_new_tokens=10)
    assert alone.rain[0].tokens == tokens[2]
    other = search(model, tokenizer, config=config_of(strategy, seed=4), max_new_tokens=10)
    assert ([record.tokens for record in other.rain] == tokens) == (strategy == "args")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_costs_count_every_token_that_is_read(strategy, model, tokenizer):
    prompt = ids_of(tokenizer, PROMPTS[0])
    record = search(model, tokenizer, PROMPTS[:1], config_of(strategy), max_new_tokens=7).rain[0]
    prefixes: set[tuple] = set()

    def visit(node, before):
        prefixes.update(before + tuple(node["tokens"][:end]) for end in range(len(node["tokens"])))
        for child in node["children"]:
            visit(child, before + tuple(node["tokens"]))
        if node["children"]:
            prefixes.add(before + tuple(node["tokens"]))

    visit(record.tree.root, ())
    assert record.stats["forward_tokens"] == len(prompt) + len(prefixes - {()})
    scored = sum(bool(node["tokens"]) for node, _, _ in walk(record.tree.root))
    assert record.stats["iterations"] == scored and record.stats["rewinds"] == 0
    assert 1 < record.stats["judge_calls"] <= scored
    assert record.stats["committed_tokens"] == 7 and record.finish_reason == "length"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_texts_end_at_eos_and_at_new_turns(strategy, model, tokenizer):
    first = search(model, tokenizer, PROMPTS[:1], config_of(strategy), max_new_tokens=8).rain[0]
    ends = search(model, tokenizer, PROMPTS[:1], config_of(strategy), max_new_tokens=8, eos_token_id=first.tokens[2])
    tokens = ends.rain[0].tokens
    if tokens == first.tokens[: len(tokens)]:
        assert len(tokens) == first.tokens.index(first.tokens[2]) + 1
    if first.tokens[2] in tokens:
        assert tokens.index(first.tokens[2]) == len(tokens) - 1 and ends.rain[0].finish_reason == "eos"
    else:
        assert strategy != "args" and len(tokens) == 8
    marked = config_of(strategy, turn_markers=(text_of(tokenizer, first.tokens[:1])[-1:],))
    turn = search(model, tokenizer, PROMPTS[:1], marked, max_new_tokens=8).rain[0]
    assert turn.finish_reason in ("turn", "length") and (strategy != "args" or turn.finish_reason == "turn")
