"""Clear errors for everything that RAIN does not support, and for scorers that fail."""

import time

import pytest
import torch
from support.rain import PROMPTS, build_causal, encode, likes_short_words, quick_config, rain
from support.tokenizers import tokenizer_of
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationConfig

from hf_interdistill import RainDecoder
from hf_interdistill.rain.scorers.base import ScorerError
from hf_interdistill.rain.scorers.builtin import FunctionScorer


@pytest.mark.parametrize("kind", ["static", "offloaded_static", "offloaded", "quantized", "paged"])
def test_caches_that_cannot_hold_a_tree_are_refused(model, tokenizer, kind):
    calls = [{"cache_implementation": kind}]
    if kind != "paged":
        calls.append({"generation_config": GenerationConfig(cache_implementation=kind, pad_token_id=3)})
    for call in calls:
        with pytest.raises(ValueError, match=f"`cache_implementation` is '{kind}'"):
            rain(model, tokenizer, PROMPTS[:1], max_new_tokens=4, **call)
    if kind == "static":
        decoder = RainDecoder(tokenizer, quick_config(), likes_short_words)
        config = GenerationConfig(cache_implementation=kind, max_length=60)
        with pytest.raises(ValueError, match="`cache_implementation` is 'static'"):
            decoder(model, **encode(tokenizer, PROMPTS[:1]), generation_config=config)


def test_bad_inputs_are_refused_clearly(model, tokenizer):
    other = tokenizer_of("bytes")
    other.add_tokens([f"<extra{number}>" for number in range(600)])
    small = build_causal(vocab_size=9000)
    inputs = encode(tokenizer, PROMPTS)
    right = {**inputs, "attention_mask": inputs["attention_mask"].flip(1)}
    empty = {"input_ids": torch.zeros(1, 0, dtype=torch.long)}
    padding_only = {"input_ids": inputs["input_ids"], "attention_mask": torch.zeros_like(inputs["input_ids"])}
    cases = [
        ({"max_new_tokens": 0}, "max_new_tokens` must be greater than 0", {}),
        ({"num_beams": 2}, "`num_beams` is 2", {}),
        ({"tokenizer": None}, "needs the model's tokenizer", {}),
        ({"tokenizer": other}, "so the tokenizer is not this model's", {}),
        ({}, "so the tokenizer is not this model's", {"model": small}),
        ({"output_scores": True}, "`output_scores=True`", {}),
        ({"guidance_scale": 1.5}, "`guidance_scale` is 1.5", {}),
        ({"assistant_model": model}, "`assistant_model` was passed", {}),
        ({}, "padding on the right", {"prompts": right}),
        ({}, "Prompt 0 is empty", {"prompts": empty}),
        ({}, "Prompt 0 is empty", {"prompts": padding_only}),
        ({"rain_config": {"min_visit": 3}}, "the nearest is `min_visits`", {}),
        ({"rain_config": "harmles"}, "not a preset", {}),
        ({"rain_scorer": "other"}, "the only scorer with a name is 'self'", {}),
        ({"custom_generate": "somewhere"}, "only one of them can decode", {}),
        ({"custom_generate": RainDecoder(tokenizer)}, "rain_config, rain_scorer was passed with a RainDecoder", {}),
        ({"rain_konfig": 3}, "rain_konfig", {}),
    ]
    for settings, message, changes in cases:
        with pytest.raises((ValueError, TypeError), match=message):
            rain(
                changes.get("model", model),
                tokenizer,
                changes.get("prompts", PROMPTS),
                **{"max_new_tokens": 4, **settings},
            )
    with pytest.raises(TypeError, match="is a float, but must be"):
        RainDecoder(tokenizer, scorer=3.5)


def test_an_encoder_decoder_is_refused(tokenizer):
    config = AutoConfig.for_model(
        "t5", vocab_size=900, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=3
    )
    with pytest.raises(ValueError, match="is an encoder-decoder"):
        rain(AutoModelForSeq2SeqLM.from_config(config), tokenizer, max_new_tokens=4)


def test_a_failing_scorer_is_named_and_nothing_is_lost(model, tokenizer):
    def failing(kind):
        calls = []

        def scorer(texts):
            calls.append(texts)
            if len(calls) < 6:
                return [1.0] * len(texts)
            if kind == "raises":
                raise KeyError("word")
            if kind == "hangs":
                time.sleep(5)
            values = {"nan": [float("nan")], "count": [0.0, 0.0], "range": [3]}
            return values[kind] * len(texts)

        return scorer

    cases = {
        "raises": "raised KeyError: 'word'",
        "nan": "returned NaN",
        "count": "values for",
        "range": "returned 3.0, but a value must lie between -1 and 1",
        "hangs": "did not answer within 0.3 seconds",
    }
    for kind, message in cases.items():
        scorer = FunctionScorer(failing(kind), timeout=0.3 if kind == "hangs" else None)
        with pytest.raises(ScorerError, match=message) as caught:
            rain(model, tokenizer, max_new_tokens=40, rain_scorer=scorer)
        records = caught.value.records
        assert len(records) == 3 and all(record.finish_reason == "unfinished" for record in records)
        assert any(record.tokens for record in records)
