"""Odd inputs of a search: nothing to draw from, empty and broken texts, pipelines, no time."""

import time

import pytest
import torch
from support.rain import PROMPTS, build_causal, encode, likes_short_words, quick_config, rain
from transformers import DynamicCache, LogitsProcessor, pipeline

from hf_interdistill import RAINLogitsProcessor
from hf_interdistill.rain.api.inputs import _warn_once
from hf_interdistill.rain.engine.sampler import sample
from hf_interdistill.rain.kv_cache.forward import cache_argument


class Leaves(LogitsProcessor):
    """Gives all tokens one score from a length on."""

    def __init__(self, length, score):
        self.length, self.score = length, score

    def __call__(self, input_ids, scores):
        return torch.full_like(scores, self.score) if input_ids.shape[1] >= self.length else scores


@pytest.mark.parametrize(("score", "message"), [(-torch.inf, "all scores are -inf"), (torch.nan, "hold NaN")])
@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("candidates", [1, 4])
def test_processors_that_leave_nothing_are_named(model, tokenizer, after, score, message, candidates):
    width = encode(tokenizer, PROMPTS[:1])["input_ids"].shape[1]
    config = quick_config(candidates=candidates, edge_lengths=(1, 2))
    with pytest.raises(ValueError, match=rf"After \d+ tokens that end with \[.*\]: The next token.*{message}"):
        rain(
            model,
            tokenizer,
            PROMPTS[:1],
            max_new_tokens=8,
            rain_config=config,
            logits_processor=[Leaves(width + after, score)],
        )


def test_a_draw_of_nothing_is_refused():
    with pytest.raises(ValueError, match="all scores are -inf"):
        sample(torch.tensor([[0.0, 1.0], [-torch.inf, -torch.inf]]), [1, 2])


def test_a_token_can_be_forced_with_an_infinite_score(model, tokenizer):
    class Force(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.index_fill(1, torch.tensor([77]), torch.inf)

    for lengths in ((1,), (3,)):
        config = quick_config(candidates=1, edge_lengths=lengths)
        output = rain(model, tokenizer, PROMPTS[:1], max_new_tokens=6, logits_processor=[Force()], rain_config=config)
        assert output.rain[0].tokens == [77] * 6


def test_half_a_surrogate_pair_in_prompts_for_scorers_is_named(model, tokenizer):
    for prompt in ("Tell \ud83d", [{"role": "user", "content": "Tell \ud83d"}]):
        with pytest.raises(ValueError, match=r"`rain_prompts` holds half a character .*after .*Tell "):
            rain(model, tokenizer, PROMPTS[:1], max_new_tokens=2, rain_prompts=[prompt])


def test_a_prompt_that_ends_in_half_a_character_is_completed(model, tokenizer):
    """The character belongs to the completion, and is whole there."""
    ids = [*tokenizer("Tell me ")["input_ids"], *tokenizer("é")["input_ids"]]
    assert tokenizer.decode(ids) == "Tell me é" and tokenizer.decode(ids[:-1]) == "Tell me \ufffd"
    seen = []

    def scorer(texts):
        seen.extend(texts)
        return [0.0] * len(texts)

    record = rain(
        model,
        tokenizer,
        {"input_ids": torch.tensor([ids[:-1]])},
        max_new_tokens=1,
        suppress_tokens=[token for token in range(900) if token != ids[-1]],
        rain_scorer=scorer,
    ).rain[0]
    assert record.tokens == ids[-1:] and record.text == "é" and set(seen) == {"é"}


def test_no_prompt_is_named(model, tokenizer):
    empty = tokenizer("", return_tensors="pt")
    inputs = {key: empty[key] for key in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="Prompt 0 is empty"):
        rain(model, tokenizer, inputs, max_new_tokens=2)


def test_a_pipeline_gets_its_tokenizer_or_says_so(model, tokenizer):
    pipe = pipeline("text-generation", model, tokenizer=tokenizer)
    settings = {
        "strategy": "rain",
        "do_sample": False,
        "rain_config": quick_config(),
        "rain_scorer": likes_short_words,
    }
    with pytest.raises(ValueError, match=r'`pipe\(text, strategy="rain", tokenizer=pipe\.tokenizer\)`'):
        pipe(PROMPTS[0], max_new_tokens=4, **settings)
    (row,) = pipe(PROMPTS[0], max_new_tokens=4, tokenizer=pipe.tokenizer, return_full_text=False, **settings)
    expected = rain(model, tokenizer, PROMPTS[:1], max_new_tokens=4).rain[0].tokens
    assert row["generated_text"] == tokenizer.decode(expected, skip_special_tokens=True)
    chat = [{"role": "user", "content": "Tell me"}]
    (row,) = pipe(chat, max_new_tokens=4, tokenizer=pipe.tokenizer, **settings)
    assert row["generated_text"][-1]["role"] == "assistant" and row["generated_text"][-1]["content"]


def test_inputs_of_a_call_that_a_processor_would_ignore_are_refused(model, tokenizer):
    inputs = encode(tokenizer, PROMPTS[:1])
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=inputs["input_ids"][:, :-1], use_cache=True, **{cache_argument(model): cache})
    shifted = inputs["attention_mask"].cumsum(-1) + 5
    for given, message in (
        ({"past_key_values": cache}, "RAIN uses its own tree cache"),
        ({"position_ids": shifted}, "`position_ids` was passed"),
    ):
        processor = RAINLogitsProcessor(model, tokenizer, quick_config(), likes_short_words)
        with pytest.raises(ValueError, match=message):
            model.generate(**inputs, **given, max_new_tokens=3, logits_processor=[processor])
    processor = RAINLogitsProcessor(model, tokenizer, quick_config(), likes_short_words)
    empty = DynamicCache(config=model.config)
    found = model.generate(**inputs, past_key_values=empty, max_new_tokens=3, logits_processor=[processor])
    assert torch.equal(found, rain(model, tokenizer, PROMPTS[:1], max_new_tokens=3).sequences)


def test_the_rules_of_a_call_hold_for_a_processor_s_search(model, tokenizer):
    """`prefix_allowed_tokens_fn` and other processors of the call, wherever they stand in the list."""
    settings = {"max_new_tokens": 5, "prefix_allowed_tokens_fn": lambda row, ids: range(10 + 20 * row, 30 + 20 * row)}
    expected = rain(model, tokenizer, **settings, logits_processor=[Leaves(10**6, 0.0)]).sequences
    for order in (1, -1):
        processors = [RAINLogitsProcessor(model, tokenizer, quick_config(), likes_short_words), Leaves(10**6, 0.0)]
        found = model.generate(**encode(tokenizer, PROMPTS), **settings, logits_processor=processors[::order])
        assert torch.equal(found, expected)


def test_time_ends_a_search_between_two_iterations(tokenizer):
    """One more commit at most, however many iterations a commit would have."""
    model, times = build_causal(), []

    def scorer(texts):
        times.append(time.time())
        time.sleep(0.02)
        return [-1.0] * len(texts)

    config = quick_config(iterations=400, extra_iterations=400)
    settings = {"max_new_tokens": 50, "max_time": 0.3}
    for way in ("strategy", "processor"):
        times.clear()
        if way == "strategy":
            record = rain(model, tokenizer, PROMPTS[:1], rain_config=config, rain_scorer=scorer, **settings).rain[0]
            assert record.finish_reason == "time"
        else:
            processor = RAINLogitsProcessor(model, tokenizer, config, scorer)
            model.generate(**encode(tokenizer, PROMPTS[:1]), logits_processor=[processor], **settings)
            (record,) = processor.records
        assert 1 <= len(record.tokens) < 50
        assert len(times) < 100  # without the limit more than 400 calls of 0.02 s


def test_an_empty_answer_to_a_prompt_without_the_chat_template_is_explained(model, tokenizer, caplog):
    _warn_once.cache_clear()
    bias = {"sequence_bias": {(2,): 1000.0}, "max_new_tokens": 4}
    messages = [{"role": "user", "content": "Tell me"}]
    chat = tokenizer.apply_chat_template([messages], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert rain(model, tokenizer, {"input_ids": chat["input_ids"]}, **bias).rain[0].text == ""
    assert "An answer is empty" not in caplog.text
    assert rain(model, tokenizer, PROMPTS[:1], **bias).rain[0].text == ""
    assert "An answer is empty: the model ended it at once. Its tokenizer has a chat template" in caplog.text
