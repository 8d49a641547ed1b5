"""RAIN on a server: what it answers equals the search in process wherever nothing is drawn."""

from __future__ import annotations

import asyncio

import pytest
import torch
from support.judges import SHORT
from support.rain import PROMPTS, encode, likes_short_words, quick_config, rain, tree_shape
from support.vllm_server import VllmLike, served

from hf_interdistill import RainClient
from hf_interdistill.rain.results.views import walk
from hf_interdistill.rain.scorers.base import Exchange, ScorerError
from hf_interdistill.rain.scorers.self_evaluation import SelfEvaluationScorer
from hf_interdistill.rain.scorers.weighted import WeightedScorer

# Rollouts are the likeliest tokens (temperature 1e-6), candidates as likely as ever (1e-6 x 1e6): nothing is drawn.
EXACT = {"edge_lengths": (1,), "expansion_temperature": 1e6}
OPTIONS = {"max_new_tokens": 8, "do_sample": True, "temperature": 1e-6, "top_k": 0}


def assert_same(records, in_process) -> None:
    for ours, theirs in zip(records, in_process, strict=True):
        assert tree_shape(ours.tree) == tree_shape(theirs.tree)
        priors = [[node["prior"] for node, _, _ in walk(each.tree.root)] for each in (ours, theirs)]
        torch.testing.assert_close(torch.tensor(priors[0]), torch.tensor(priors[1]), atol=2e-5, rtol=1e-3)
        assert (ours.tokens, ours.text, ours.finish_reason) == (theirs.tokens, theirs.text, theirs.finish_reason)
        for name in ("iterations", "rewinds", "committed_tokens"):
            assert ours.stats[name] == theirs.stats[name]


@pytest.mark.parametrize("leaves_per_step", [1, 3])
def test_a_search_without_draws_is_that_in_process(url, model, tokenizer, leaves_per_step):
    config = quick_config(**EXACT, leaves_per_step=leaves_per_step)
    prompts = [*PROMPTS, PROMPTS[0]]
    records = RainClient(url, "lm", tokenizer, config, likes_short_words).generate(prompts, **OPTIONS)
    assert_same(records, rain(model, tokenizer, prompts, rain_config=config, **OPTIONS).rain)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 2e-6, "top_k": 3},
        {"top_k": 5, "top_p": 0.5},
        {"repetition_penalty": 1.3},
        {"stop_strings": ["e", "zz"]},
        {"eos_token_id": [138, 336, 2]},
        {"max_new_tokens": None, "max_length": 24},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_act_as_in_process(model, tokenizer, options):
    config = quick_config(**EXACT)
    if "top_p" in options:  # a nucleus of candidates wants a plain temperature
        config, options = quick_config(edge_lengths=(1,)), {**options, "temperature": 1.0, "top_k": 2}
    settings = {**OPTIONS, **options}
    settings = {name: value for name, value in settings.items() if value is not None}
    with served(VllmLike(model, tokenizer, is_processed="repetition_penalty" in options)) as url:
        records = RainClient(url, "lm", tokenizer, config, likes_short_words).generate(PROMPTS[:1], **settings)
    in_process = rain(model, tokenizer, PROMPTS[:1], rain_config=config, **settings).rain
    if "top_p" in options:  # rollouts are drawn
        for ours, theirs in zip(records, in_process, strict=True):
            pairs = zip(ours.tree.root["children"], theirs.tree.root["children"], strict=True)
            for one, other in pairs:
                assert one["tokens"] == other["tokens"]
                assert one["prior"] == pytest.approx(other["prior"], abs=1e-5)
        return
    assert_same(records, in_process)
    plain = rain(model, tokenizer, PROMPTS[:1], rain_config=config, **OPTIONS).rain
    assert [each.tree.root for each in plain] != [each.tree.root for each in in_process]


def test_messages_are_rendered_by_the_chat_template(url, backend, model, tokenizer):
    messages = [{"role": "user", "content": "Tell me"}]
    config = quick_config(**EXACT)
    records = RainClient(url, "lm", tokenizer, config, likes_short_words).generate([messages], **OPTIONS)
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [body["prompt"] for path, body in backend.requests if path == "/v1/completions"][-1][: len(ids)] == ids
    assert_same(records, rain(model, tokenizer, encode(tokenizer, [text]), rain_config=config, **OPTIONS).rain)


@pytest.mark.parametrize("vote", ["hard", "probability"])
@pytest.mark.parametrize("calibrate", [False, True])
@pytest.mark.parametrize("is_processed", [False, True])
def test_the_served_model_judges_itself_as_in_process(model, tokenizer, vote, calibrate, is_processed):
    scorer = SelfEvaluationScorer(SHORT, vote=vote, calibrate=calibrate)
    exchanges = [Exchange(prompt, text) for prompt in PROMPTS[:2] for text in ("Yes, of course.", "", "No <s> (A)")]
    wanted = scorer.bind(model, tokenizer).score(exchanges)
    with served(VllmLike(model, tokenizer, is_processed=is_processed)) as url:
        client = RainClient(url, "lm", tokenizer, quick_config(), scorer)
        client.check(client.resolve({}))
        judge = scorer.bind(client, tokenizer)
        assert judge.score(exchanges) == pytest.approx(wanted, abs=1e-5)
        assert judge.score_batch(exchanges[::-1])[0] == pytest.approx(wanted[::-1], abs=1e-5)
        mixed = WeightedScorer([(scorer, 1), (likes_short_words, 1)]).bind(client, tokenizer)
        halves = [
            (a + b) / 2 for a, b in zip(wanted, likes_short_words([e.completion for e in exchanges]), strict=True)
        ]
        assert mixed.score(exchanges) == pytest.approx(halves, abs=1e-5)


def test_a_search_that_judges_itself_is_that_in_process(url, model, tokenizer):
    config = quick_config(**EXACT)
    scorer, options = SelfEvaluationScorer(SHORT, vote="probability"), {**OPTIONS, "max_new_tokens": 4}
    records = RainClient(url, "lm", tokenizer, config, scorer).generate(PROMPTS[:2], **options)
    in_process = rain(model, tokenizer, PROMPTS[:2], rain_config=config, rain_scorer=scorer, **options).rain
    for ours, theirs in zip(records, in_process, strict=True):
        assert ours.tokens == theirs.tokens
        visits = [[(n["tokens"], n["visits"]) for n, _, _ in walk(each.tree.root)] for each in (ours, theirs)]
        assert visits[0] == visits[1]


def test_siblings_share_values_by_an_embedder(url, model, tokenizer):
    def embed(texts):
        return torch.tensor([[len(text) % 3, 1.0] for text in texts]).numpy()

    config = quick_config(**EXACT, similarity_threshold=0.5, widening_variance=10.0, widening_value=1.0)
    client = RainClient(url, "lm", tokenizer, config, likes_short_words, embedder=embed)
    records = client.generate(PROMPTS, **OPTIONS)
    assert_same(records, rain(model, tokenizer, rain_config=config, rain_embedder=embed, **OPTIONS).rain)
    assert any(node["visits"] != node["true_visits"] for node, _, _ in walk(records[0].tree.root))


def test_the_same_seed_gives_the_same_answers_however_many_are_in_flight(url, tokenizer):
    def search(**changes):
        config = quick_config(edge_lengths=(1, 2, 3), **changes)
        records = RainClient(url, "lm", tokenizer, config, likes_short_words).generate(PROMPTS[:2], max_new_tokens=4)
        return [tree_shape(record.tree) for record in records]

    first = search()
    assert search() == first == search(max_batch_size=1)
    assert search(seed=4) != first


def test_equal_prompts_have_draws_of_their_own(url, tokenizer):
    client = RainClient(url, "lm", tokenizer, quick_config(edge_lengths=(3,)), likes_short_words)
    first, second = client.generate(["Tell me", "Tell me"], max_new_tokens=6)
    assert tree_shape(first.tree) != tree_shape(second.tree)


def test_costs_are_those_of_the_requests(url, backend, tokenizer):
    client = RainClient(url, "lm", tokenizer, quick_config(edge_lengths=(2,)), likes_short_words)
    client.check(client.resolve({}))
    backend.requests.clear()
    (record,) = client.generate(["Tell me"], max_new_tokens=4)
    bodies = [body for path, body in backend.requests if path == "/v1/completions"]
    assert record.stats["requests"] == len(bodies) == len(backend.requests)
    assert record.stats["forward_tokens"] > sum(len(body["prompt"]) for body in bodies)
    assert record.stats["judge_calls"] == len({*map(str, range(int(record.stats["judge_calls"])))}) > 0


def test_it_runs_inside_an_event_loop(url, tokenizer):
    async def notebook():
        client = RainClient(url, "lm", tokenizer, quick_config(), likes_short_words)
        return client.generate(["Tell me"], max_new_tokens=3)

    (record,) = asyncio.run(notebook())
    assert record.stats["committed_tokens"] == 3


def test_a_scorer_that_fails_leaves_what_was_committed(url, tokenizer):
    calls = []

    def failing(texts):
        calls.append(texts)
        if len(calls) > 12:
            raise RuntimeError("no more")
        return likes_short_words(texts)

    client = RainClient(url, "lm", tokenizer, quick_config(max_batch_size=1), failing)
    with pytest.raises(ScorerError, match="no more") as caught:
        client.generate(PROMPTS, max_new_tokens=8)
    assert [record.finish_reason for record in caught.value.records][-1] == "unfinished"
    assert len(caught.value.records) == len(PROMPTS)
    assert sum(record.stats["committed_tokens"] for record in caught.value.records) > 0


def test_time_limits_end_texts(url, backend, tokenizer):
    from support.vllm_server import slow

    backend.fault = slow(0.02)
    client = RainClient(url, "lm", tokenizer, quick_config(), likes_short_words)
    (record,) = client.generate(["Tell me"], max_new_tokens=64, max_time=0.3)
    assert record.finish_reason == "time"
    assert 0 < record.stats["committed_tokens"] < 64


@pytest.mark.parametrize("longest", [5, None])
@pytest.mark.parametrize("limits", [{}, {"max_new_tokens": 3}, {"max_new_tokens": 40}], ids=str)
def test_at_the_end_of_the_context_no_more_is_asked_for_than_is_left(model, tokenizer, longest, limits):
    """The server refuses a request that is longer than its context."""
    length = len(tokenizer(PROMPTS[0])["input_ids"])
    config = quick_config(**EXACT, rollout_max_tokens=longest, rollout_stops="")
    options = {name: value for name, value in OPTIONS.items() if name != "max_new_tokens"}
    with served(VllmLike(model, tokenizer, max_length=length + 4)) as url:
        records = RainClient(url, "lm", tokenizer, config, likes_short_words).generate(
            PROMPTS[:1], **options, **limits
        )
    in_context = {**options, "max_new_tokens": min(4, limits.get("max_new_tokens", 4))}
    (wanted,) = rain(model, tokenizer, PROMPTS[:1], rain_config=config, **in_context).rain
    assert tree_shape(records[0].tree) == tree_shape(wanted.tree)
    assert records[0].tokens == wanted.tokens
    assert records[0].finish_reason == ("length" if limits.get("max_new_tokens") == 3 else "context")
