"""One engine for many prompts: families, seeds, batching, costs."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from support.rain import (
    COPYING_FAMILIES,
    PROMPTS,
    TREE_FAMILIES,
    build_causal,
    encode,
    letters,
    likes_short_words,
    quick_config,
    search,
)
from support.rain import tree_shape as shape

from hf_interdistill.rain.api.decoder import RainDecoder
from hf_interdistill.rain.engine.engine import Prompt, default_num_speculative
from hf_interdistill.rain.engine.stopping import StopConditions
from hf_interdistill.rain.results.views import walk
from hf_interdistill.rain.search.requests import Decode


def tokens_of(output) -> list[list[int]]:
    return [record.tokens for record in output.rain]


@pytest.mark.parametrize("family", [*TREE_FAMILIES, *COPYING_FAMILIES])
def test_every_family_is_searched_alike_alone_and_in_a_batch(family, tokenizer):
    model = build_causal(family)
    together = search(model, tokenizer)
    assert all(len(tokens) == 8 for tokens in tokens_of(together))
    for number in (0, 2):
        assert tokens_of(search(model, tokenizer, [PROMPTS[number]])) == [together.rain[number].tokens]
    assert tokens_of(search(model, tokenizer, PROMPTS[::-1])) == tokens_of(together)[::-1]


def test_same_seed_same_tokens_other_seed_others(model, tokenizer):
    first = tokens_of(search(model, tokenizer))
    assert tokens_of(search(model, tokenizer)) == first
    assert tokens_of(search(model, tokenizer, config=quick_config(seed=4))) != first


def test_without_a_seed_torch_decides(model, tokenizer):
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(tokens_of(search(model, tokenizer, config=quick_config(seed=None))))
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_speculation_changes_the_cost_and_not_the_tree(family, tokenizer):
    model = build_causal(family)
    outputs = [
        search(
            model,
            tokenizer,
            config=quick_config(num_speculative=ahead, similarity_threshold=0.9, iterations=20),
            embedder=letters,
            max_new_tokens=12,
        )
        for ahead in (0, 1, 8)
    ]
    trees = [[shape(record.tree) for record in output.rain] for output in outputs]
    assert trees[0] == trees[1] == trees[2]
    priors = [[each["prior"] for record in output.rain for each, _, _ in walk(record.tree.root)] for output in outputs]
    assert priors[1] == pytest.approx(priors[0], abs=1e-5) and priors[2] == pytest.approx(priors[0], abs=1e-5)
    passes, tokens = (
        [output.rain_totals[name] for output in outputs] for name in ("forward_passes", "forward_tokens")
    )
    if family == "llama":
        assert passes[2] < passes[1] < passes[0]
        assert tokens[0] <= tokens[1] <= tokens[2]
    else:  # texts of different lengths need passes of their own
        assert passes[2] == passes[1] == passes[0]


def test_a_chain_of_expansions_is_predicted(model, tokenizer):
    """The lookahead predicts a search that goes deeper with each visit, through expansions not yet requested."""
    config = quick_config(num_speculative=8, exploration=0.0, iterations=16, edge_lengths=(1, 2), min_visits=99)
    passes = []
    for ahead in (0, 8):
        decoder = RainDecoder(tokenizer, replace(config, num_speculative=ahead), lambda texts: [0.0] * len(texts))
        engine = decoder.build_engine(model)
        engine.start([Prompt((5, 6, 7), "", StopConditions(40))], seed=1)
        while engine.requests[0].search.iterations < 12:
            engine.step()
        assert max(node.depth for node in engine.requests[0].search.tree.origin.subtree()) > 8
        passes.append(engine.totals["forward_passes"])
    assert passes[1] < 0.5 * passes[0]


@pytest.mark.slow
def test_a_compiled_model_grows_the_same_tree(tokenizer):
    """Traced as for any device, with sizes that change and no graph break; no code for a device is made of it."""
    model = build_causal()
    plain = search(model, tokenizer)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.forward = torch.compile(model.forward, dynamic=True, backend="eager")
    compiled = search(model, tokenizer)
    assert [shape(record.tree) for record in compiled.rain] == [shape(record.tree) for record in plain.rain]
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["calls_captured"] > 0 and not counters["graph_break"]
    assert not counters["recompile_limit"] and counters["stats"]["unique_graphs"] <= 12


def test_reused_rows_give_the_same_tokens(model, tokenizer):
    whole = search(model, tokenizer)
    rationed = search(model, tokenizer, config=quick_config(max_batch_size=1))
    assert tokens_of(rationed) == tokens_of(whole)
    assert rationed.rain_totals["forward_passes"] > whole.rain_totals["forward_passes"]


def test_prompts_in_lock_step_share_forward_passes(model, tokenizer):
    config = quick_config(num_speculative=0)
    one = search(model, tokenizer, PROMPTS[:1], config).rain_totals["forward_passes"]
    four = search(model, tokenizer, [PROMPTS[0]] * 4, config).rain_totals["forward_passes"]
    assert four < 2 * one


def test_searches_do_not_wait_for_the_long_expansion_of_another(model, tokenizer):
    """Those that are ready are judged while the others decode on, and meet them again in later passes."""
    engine = RainDecoder(tokenizer, quick_config(num_speculative=0, iterations=30), likes_short_words).build_engine(
        model
    )
    ids = [tuple(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    engine.start([Prompt(each, "", StopConditions(12)) for each in ids], seed=1)
    left_behind = 0
    while not engine.is_finished:
        before = {job.number: job.search.iterations for job in engine.requests}
        engine.step()
        going_on = [job for job in engine.requests if not job.is_finished]
        still = [job for job in going_on if job.search.iterations == before[job.number]]
        assert len(still) <= max(1, len(PROMPTS) // 2)
        left_behind += len(still)
    assert left_behind > 0


def test_prompts_share_the_number_of_speculative_inputs(model, tokenizer):
    assert [default_num_speculative("cpu", prompts) for prompts in (1, 2, 4, 16)] == [16, 8, 4, 3]
    assert [default_num_speculative("cuda", prompts) for prompts in (1, 2, 4, 16)] == [48, 24, 16, 16]
    engine = RainDecoder(tokenizer, quick_config(), likes_short_words).build_engine(model)
    engine.start([Prompt((5, 6, number), "", StopConditions(4)) for number in range(4)], seed=1)
    assert {job.search.config.num_speculative for job in engine.requests} == {4}


def test_equal_prompts_get_answers_of_their_own(model, tokenizer):
    output = search(model, tokenizer, PROMPTS[:1] * 3)
    assert len({tuple(tokens) for tokens in tokens_of(output)}) > 1
    assert output.rain[0].tokens == search(model, tokenizer, PROMPTS[:1]).rain[0].tokens


def test_similarity_changes_visits_and_widens(model, tokenizer):
    def bad(texts):
        return [-0.9] * len(texts)

    config = quick_config(similarity_threshold=0.5, widening_variance=10.0, candidates=2, iterations=30)
    plain = search(model, tokenizer, PROMPTS[:1], config, bad)
    similar = search(model, tokenizer, PROMPTS[:1], config, bad, embedder=letters)
    assert len(plain.rain[0].tree.root["children"]) == 2
    assert 2 < len(similar.rain[0].tree.root["children"]) <= 20
    first = similar.rain[0].tree.root["children"][0]
    assert first["visits"] > first["true_visits"]


@pytest.mark.parametrize("ahead", [0, 8])
def test_memory_holds_the_tree_and_no_rollouts(model, tokenizer, ahead):
    decoder = RainDecoder(tokenizer, quick_config(iterations=20, num_speculative=ahead), likes_short_words)
    engine = decoder.build_engine(model)
    ids = [tuple(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    engine.start([Prompt(each, "", StopConditions(12)) for each in ids], seed=1)
    while not engine.is_finished:
        engine.step()
        places = [
            (job.state.row, slot)
            for job in engine.requests
            if job.running
            for place in job.state.nodes.values()
            if place.handle is not None
            for slot in place.handle.slots.tolist()
        ]
        going_on = sum(
            len(needed.parent.slots) - len(decode_job.node.parent.slots if decode_job.node.parent else ())
            for job in engine.requests
            if job.running
            for decode_job in job.state.jobs.values()
            for needed in decode_job.inputs
        )
        assert len(set(places)) <= engine.cache.num_tokens <= len(set(places)) + going_on
        # Without reading ahead, only a search that still waits for its tokens has works under way.
        waiting = [job for job in engine.requests if job.running and isinstance(job.waiting, Decode)]
        assert ahead or all(not job.state.jobs for job in engine.requests if job.running and job not in waiting)
    assert engine.cache.num_tokens == 0 and len(engine.scores) == 0


def test_stats_are_complete_and_add_up(model, tokenizer):
    output = search(model, tokenizer)
    for record in output.rain:
        assert list(record.stats) == [
            "forward_passes",
            "forward_tokens",
            "judge_calls",
            "iterations",
            "rewinds",
            "committed_tokens",
            "seconds",
        ]
        assert record.stats["committed_tokens"] == len(record.tokens) == 8
        assert record.stats["iterations"] >= record.stats["rewinds"] > 0
        assert record.tree.root["true_visits"] <= record.stats["iterations"]
    for name in ("forward_tokens", "judge_calls"):
        assert sum(record.stats[name] for record in output.rain) == output.rain_totals[name]
    assert max(record.stats["forward_passes"] for record in output.rain) <= output.rain_totals["forward_passes"]


def test_the_score_steers(stories):
    """On a real model: more of what the scorer likes than in plain sampling."""
    model, tokenizer = stories

    def short_sentences(texts):
        return [1.0 if "happy" in text else -0.2 for text in texts]

    prompts = ["Once upon a time, there was a little girl named Lily.", "One day, a big dog"]
    config = quick_config(iterations=40, extra_iterations=20, candidates=10, rollout_max_tokens=20)
    output = search(model, tokenizer, prompts, config, short_sentences, max_new_tokens=24)
    torch.manual_seed(0)
    plain = model.generate(
        **encode(tokenizer, prompts), do_sample=True, max_new_tokens=24, num_return_sequences=8, pad_token_id=0
    )
    share = sum("happy" in text for text in tokenizer.batch_decode(plain)) / 16
    assert sum("happy" in record.text for record in output.rain) / 2 > share


def test_finished_trees_are_freed_at_once(model, tokenizer):
    """Not when Python's garbage collector comes by, which in a long job is after a thousand prompts."""
    decoder = RainDecoder(tokenizer, quick_config(), likes_short_words)
    engine = decoder.build_engine(model)
    engine.start([Prompt(tuple(tokenizer(PROMPTS[0])["input_ids"]), "", StopConditions(6))], seed=1)
    gc.disable()
    try:
        while not engine.is_finished:
            engine.step()
        nodes = [weakref.ref(node) for node in engine.requests[0].search.tree.origin.subtree()]
        ((number, record),) = engine.take_finished()
        assert number == 0 and record.tokens and len(nodes) > 10
        assert len(list(walk(record.tree.root))) == len(nodes)
        assert not [node for node in nodes if node() is not None]
    finally:
        gc.enable()
