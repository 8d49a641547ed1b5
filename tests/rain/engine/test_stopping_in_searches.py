"""Searches end texts as `generate` does: at the length, EOS, stop strings, criteria, a new turn, or the context."""

import pytest
import torch
from support.rain import PROMPTS, build_causal, encode, likes_short_words, quick_config, rain
from transformers import GenerationConfig, StoppingCriteria

from hf_interdistill import RainDecoder


def test_left_padding_changes_nothing(model, tokenizer):
    batch = rain(model, tokenizer, max_new_tokens=6, min_new_tokens=6)
    for number, prompt in enumerate(PROMPTS):
        alone = rain(model, tokenizer, [prompt], max_new_tokens=6, min_new_tokens=6)
        assert alone.rain[0].tokens == batch.rain[number].tokens
    assert torch.equal(batch.sequences[:, -6:], torch.tensor([record.tokens for record in batch.rain]))


@pytest.mark.parametrize("names", [("min_new_tokens",), ("min_length",)])
def test_a_minimum_length_counts_from_the_prompt(model, tokenizer, names):
    """EOS is the likeliest token everywhere, so only the minimum keeps a text from ending."""

    inputs = encode(tokenizer, PROMPTS)
    least = 4 if names[0] == "min_new_tokens" else inputs["input_ids"].shape[1] + 4
    bias = {"sequence_bias": {(2,): 50.0}}
    output = rain(model, tokenizer, inputs, max_new_tokens=8, **{names[0]: least}, **bias)
    assert [len(record.tokens) for record in output.rain] == [5, 5, 5]
    assert {record.finish_reason for record in output.rain} == {"eos"}


def test_length_limits(model, tokenizer):
    inputs = encode(tokenizer, PROMPTS)
    length = inputs["input_ids"].shape[1]
    by_new = rain(model, tokenizer, max_new_tokens=5)
    by_length = rain(model, tokenizer, max_length=length + 5)
    by_config = rain(model, tokenizer, generation_config=GenerationConfig(max_new_tokens=5, pad_token_id=3))
    assert by_new.sequences.shape == (3, length + 5)
    assert torch.equal(by_new.sequences, by_length.sequences)
    assert torch.equal(by_new.sequences, by_config.sequences)
    assert {record.finish_reason for record in by_new.rain} == {"length"}


def test_eos_lists_end_a_text_and_padding_follows(model, tokenizer):
    free = rain(model, tokenizer, max_new_tokens=8)
    stops = [free.rain[0].tokens[2], 2]
    output = rain(model, tokenizer, max_new_tokens=8, eos_token_id=stops)
    ends = [record for record in output.rain if record.finish_reason == "eos"]
    assert ends
    for record, row in zip(output.rain, output.sequences, strict=True):
        answer = row[-(output.sequences.shape[1] - encode(tokenizer, PROMPTS)["input_ids"].shape[1]) :].tolist()
        assert answer == record.tokens + [3] * (len(answer) - len(record.tokens))
        if record.finish_reason == "eos":
            assert record.tokens[-1] in stops and not set(record.tokens[:-1]) & set(stops)


def test_eos_as_the_first_token(model, tokenizer):
    output = rain(model, tokenizer, max_new_tokens=8, sequence_bias={(2,): 1000.0})
    assert [record.tokens for record in output.rain] == [[2], [2], [2]]
    assert [record.text for record in output.rain] == ["", "", ""]


def test_stop_strings_from_call_config_and_model(model, tokenizer):
    (token,) = tokenizer("e")["input_ids"]
    bias = {"sequence_bias": {(token,): 1000.0}, "max_new_tokens": 8}
    plain = {"pad_token_id": 3, "eos_token_id": 2}
    own = build_causal()
    own.generation_config.stop_strings = ["ee"]
    for each, settings in (
        (model, {"stop_strings": "ee", **bias}),
        (model, {"generation_config": GenerationConfig(stop_strings=["xyz", "ee"], **bias, **plain)}),
        (own, bias),
    ):
        record = rain(each, tokenizer, PROMPTS[:1], **settings).rain[0]
        assert (record.text, record.finish_reason) == ("ee", "stop")
        decoder = RainDecoder(tokenizer, quick_config(), likes_short_words)
        sequences = each.generate(**encode(tokenizer, PROMPTS[:1]), custom_generate=decoder, **settings)
        assert sequences[0, -2:].tolist() == record.tokens
    assert own.generation_config.stop_strings == ["ee"]


def test_stopping_criteria_end_a_text(model, tokenizer):
    class AfterThree(StoppingCriteria):
        def __init__(self, length):
            self.length = length

        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] >= self.length, dtype=torch.bool)

    inputs = encode(tokenizer, PROMPTS[:1])
    criterion = AfterThree(inputs["input_ids"].shape[1] + 3)
    output = rain(model, tokenizer, PROMPTS[:1], stopping_criteria=[criterion], max_new_tokens=8)
    assert (len(output.rain[0].tokens), output.rain[0].finish_reason) == (3, "stop")


def test_a_criterion_that_starts_to_hold_ends_a_text_at_the_next_commit(model, tokenizer):
    """As `MaxTimeCriteria` does."""
    asked, is_late = [], []

    def scorer(texts):
        if len(asked) >= 8:
            is_late.append(True)
        asked.extend(texts)
        return [1.0] * len(texts)

    class Late(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), bool(is_late), dtype=torch.bool)

    free = rain(model, tokenizer, PROMPTS[:1], max_new_tokens=60, rain_scorer=lambda texts: [1.0] * len(texts))
    record = rain(
        model, tokenizer, PROMPTS[:1], max_new_tokens=60, rain_scorer=scorer, stopping_criteria=[Late()]
    ).rain[0]
    assert record.finish_reason == "stop"
    assert 0 < len(record.tokens) < 60 and record.tokens == free.rain[0].tokens[: len(record.tokens)]


def test_a_new_turn_ends_a_text_and_is_not_judged(model, tokenizer):
    seen = []

    def scorer(texts):
        seen.extend(texts)
        return [0.0] * len(texts)

    free = rain(model, tokenizer, PROMPTS[:1], max_new_tokens=8, rain_scorer=scorer)
    marker = tokenizer.decode(free.rain[0].tokens[2:3])
    seen.clear()
    config = quick_config(turn_markers=[marker])
    record = rain(model, tokenizer, PROMPTS[:1], max_new_tokens=8, rain_config=config, rain_scorer=scorer).rain[0]
    assert seen and not any(marker in text for text in seen)
    assert marker not in record.text
    assert marker not in tokenizer.decode(record.tokens[:-1])


def test_context_ends_a_text(tokenizer):
    prompt = "How do I bake bread?"
    length = encode(tokenizer, [prompt])["input_ids"].shape[1]
    for family in ("gpt2", "llama"):
        name = "n_positions" if family == "gpt2" else "max_position_embeddings"
        output = rain(build_causal(family, **{name: length + 3}), tokenizer, [prompt], max_new_tokens=10)
        assert (len(output.rain[0].tokens), output.rain[0].finish_reason) == (3, "context")
        with pytest.raises(ValueError, match=f"prompt has {length} tokens, but the model's context is {length - 1}"):
            rain(build_causal(family, **{name: length - 1}), tokenizer, [prompt], max_new_tokens=10)
