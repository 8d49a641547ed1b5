"""Options of `generate`: caches, processors, several answers, streamers, outputs."""

import pytest
import torch
from support.rain import PROMPTS, encode, likes_short_words, quick_config, rain
from transformers import TextStreamer

from hf_interdistill import RainDecoder


def test_other_cache_settings_change_no_token(model, tokenizer, caplog):
    plain = rain(model, tokenizer, PROMPTS[:1], max_new_tokens=4)
    assert "use_cache" not in caplog.text
    dynamic = rain(model, tokenizer, PROMPTS[:1], max_new_tokens=4, cache_implementation="dynamic")
    assert "use_cache" not in caplog.text
    without = rain(model, tokenizer, PROMPTS[:1], max_new_tokens=4, use_cache=False)
    assert "`use_cache=False` has no effect" in caplog.text
    assert plain.rain[0].tokens == dynamic.rain[0].tokens == without.rain[0].tokens


def test_processors_and_warpers_shape_candidates_and_rollouts(model, tokenizer):
    allowed = list(range(40, 60))
    seen = []

    def scorer(texts):
        seen.extend(texts)
        return [0.0] * len(texts)

    output = rain(
        model,
        tokenizer,
        max_new_tokens=6,
        rain_scorer=scorer,
        prefix_allowed_tokens_fn=lambda batch, ids: allowed,
    )
    assert all(set(record.tokens) <= set(allowed) for record in output.rain)
    letters = {character for token in allowed for character in tokenizer.decode([token])}
    assert all(set(text) <= letters for text in seen)
    plain = rain(model, tokenizer, max_new_tokens=6)
    for settings in (
        {"do_sample": True, "temperature": 0.3},
        {"do_sample": True, "top_k": 2},
        {"do_sample": True, "top_p": 0.2},
        {"repetition_penalty": 3.0},
    ):
        changed = rain(model, tokenizer, max_new_tokens=6, **settings)
        assert not torch.equal(changed.sequences, plain.sequences), settings


def test_expansion_settings_change_the_search(model, tokenizer):
    plain = rain(model, tokenizer, max_new_tokens=6)
    changes = [
        {"expansion_temperature": 3.0},
        {"sample_top_k": 2},
        {"candidates": 2},
        {"edge_lengths": (3,)},
        {"exploration": 50.0},
        {"root_uniform": 1.0},
        {"min_visits": 0, "value_threshold": -1.0},
        {"iterations": 20},
        {"extra_iterations": 20},
        {"rollout_stops": "aeiou "},
        {"rollout_max_tokens": 1},
    ]
    for change in changes:
        changed = rain(model, tokenizer, max_new_tokens=6, rain_config=quick_config(**change))
        assert changed.rain[0].tree.root != plain.rain[0].tree.root, change


def test_several_answers_per_prompt(model, tokenizer):
    output = rain(model, tokenizer, PROMPTS[:2], max_new_tokens=6, num_return_sequences=3, do_sample=True)
    assert len(output.rain) == len(output.sequences) == 6
    assert len({tuple(record.tokens) for record in output.rain[:3]}) > 1
    one = rain(model, tokenizer, PROMPTS[:2], max_new_tokens=6, do_sample=True)
    assert one.rain[1].tokens == output.rain[3].tokens


def test_a_streamer_gets_prompt_and_committed_tokens(model, tokenizer, capsys):
    class Recording(TextStreamer):
        def __init__(self):
            super().__init__(tokenizer)
            self.parts, self.has_ended = [], False

        def put(self, value):
            self.parts.append(value.flatten().tolist())
            super().put(value)

        def end(self):
            self.has_ended = True
            super().end()

    inputs = encode(tokenizer, PROMPTS[:1])
    for entry_point in ("strategy", "decoder"):
        streamer = Recording()
        if entry_point == "strategy":
            tokens = rain(model, tokenizer, PROMPTS[:1], max_new_tokens=9, streamer=streamer).rain[0].tokens
        else:
            decoder = RainDecoder(tokenizer, quick_config(), likes_short_words, streamer=streamer)
            model.generate(**inputs, custom_generate=decoder, max_new_tokens=9)
        assert streamer.has_ended
        assert streamer.parts[0] == inputs["input_ids"][0].tolist()
        assert [token for part in streamer.parts[1:] for token in part] == tokens
        assert [len(part) for part in streamer.parts[1:]][:3] == [1, 2, 4]
    with pytest.raises(ValueError, match="only supports batch size 1"):
        rain(model, tokenizer, max_new_tokens=2, streamer=TextStreamer(tokenizer))


def test_plain_and_dict_output(model, tokenizer):
    output = rain(model, tokenizer, max_new_tokens=4)
    plain = rain(model, tokenizer, max_new_tokens=4, return_dict_in_generate=False)
    assert torch.equal(plain, output.sequences)
    assert output["rain"] is output.rain
    root = output.rain[0].tree.root
    committed = []
    while root is not None:
        committed += root["tokens"]
        root = next((child for child in root["children"] if child["is_committed"]), None)
    assert committed == output.rain[0].tokens
    assert output.rain[0].text == output.rain[0].tree.completion


def test_a_chat_prompt_is_judged_as_messages(model, tokenizer):
    seen = []

    def reward(prompts, completions):
        seen.extend(zip(prompts, completions, strict=True))
        return [0.0] * len(prompts)

    messages = [{"role": "user", "content": "How are you?"}]
    inputs = tokenizer.apply_chat_template(
        [messages], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    rain(model, tokenizer, inputs, max_new_tokens=4, rain_scorer=reward, rain_prompts=[messages])
    assert all(prompt == messages and completion[0]["role"] == "assistant" for prompt, completion in seen)
    seen.clear()
    rain(model, tokenizer, inputs, max_new_tokens=4, rain_scorer=reward)
    assert all(prompt == messages and completion[0]["role"] == "assistant" for prompt, completion in seen)
    seen.clear()
    inputs = {key: values[:, :-2] for key, values in inputs.items()}  # no template renders such a prompt
    rain(model, tokenizer, inputs, max_new_tokens=4, rain_scorer=reward)
    assert all("How are you?" in prompt and isinstance(completion, str) for prompt, completion in seen)
    with pytest.raises(ValueError, match="`rain_prompts` has 2 prompts, but there are 1"):
        rain(model, tokenizer, inputs, max_new_tokens=4, rain_scorer=reward, rain_prompts=[messages] * 2)
