"""Every argument of `generate` and every field of `GenerationConfig` is honored, refused, or has no effect at all."""

import copy
import inspect

import pytest
import torch
from support.rain import PROMPTS, build_causal, encode, quick_config, rain
from support.tokenizers import tokenizer_of
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    GenerationMixin,
    MaxLengthCriteria,
    WatermarkingConfig,
)

from hf_interdistill import RAINLogitsProcessor
from hf_interdistill.rain.api.generation_options import HONORED, REFUSED, WITHOUT_EFFECT
from hf_interdistill.rain.results.views import walk

GREEDY = {"candidates": 1, "edge_lengths": (3,), "iterations": 1}  # such a search writes what greedy decoding writes
NEW = 6


def names() -> set[str]:
    arguments = set(inspect.signature(inspect.unwrap(GenerationMixin.generate)).parameters) - {"self", "kwargs"}
    return arguments | {name for name in vars(GenerationConfig()) if not name.startswith("_")}


def test_every_option_has_one_decision():
    tables = [set(HONORED), set(REFUSED), set(WITHOUT_EFFECT)]
    undecided = names() - set.union(*tables)
    assert not undecided, f"decide in generation_options.py what RAIN does with {sorted(undecided)}"
    assert sum(map(len, tables)) == len(set.union(*tables))


REFUSALS = {
    "num_beams": 2,
    "num_beam_groups": 2,
    "constraints": ["x"],
    "force_words_ids": [[5]],
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "guidance_scale": 1.5,
    "negative_prompt_ids": torch.tensor([[5]]),
    "negative_prompt_attention_mask": torch.tensor([[1]]),
    "assistant_model": torch.nn.Linear(1, 1),
    "assistant_tokenizer": object(),
    "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 1,
    "use_mtp": True,
    "is_assistant": True,
    "synced_gpus": True,
    "token_healing": True,
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
}


# Without `strategy`, transformers takes another loop or raises itself before a processor is called.
OTHER_LOOPS = {"num_beams", "constraints", "force_words_ids", "assistant_early_exit", "dola_layers", "penalty_alpha"}
OTHER_LOOPS |= {"token_healing", "use_mtp"}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_an_option_is_refused_wherever_it_is_set(model, tokenizer, name):
    value = REFUSALS[name]
    calls = [(model, {name: value})]
    if name in vars(GenerationConfig()):
        own = copy.copy(model)
        own.generation_config = copy.deepcopy(model.generation_config)
        setattr(own.generation_config, name, value)
        config = copy.deepcopy(own.generation_config)
        calls += [(own, {}), (model, {"generation_config": config})]
    for each, settings in calls:
        with pytest.raises(ValueError, match=f"`{name}(=True)?`.*, but "):
            rain(each, tokenizer, PROMPTS[:1], max_new_tokens=2, **settings)
        processor = RAINLogitsProcessor(each, tokenizer, quick_config(), lambda texts: [0.0] * len(texts))
        if name in vars(GenerationConfig()) and name not in OTHER_LOOPS:
            with pytest.raises(ValueError, match=name):
                settings = {"max_new_tokens": 2, "logits_processor": [processor], **settings}
                each.generate(**encode(tokenizer, PROMPTS[:1]), **settings)


def allow_by_row(row, ids):
    return list(range(10 + 30 * row, 40 + 30 * row))


def greedy(model, **settings):
    return model.generate(**encode(tokenizer_of("bytes"), PROMPTS), do_sample=False, **settings)


def settings_of(model, tokenizer) -> dict[str, dict]:
    """Settings that change the greedy texts of a model."""
    inputs = encode(tokenizer, PROMPTS)
    width = inputs["input_ids"].shape[1]
    plain = greedy(model, max_new_tokens=NEW, pad_token_id=3)[:, width:].tolist()
    prompt = inputs["input_ids"][2, -3:].tolist()
    words = [tokenizer.decode([token]) for token in plain[1]]
    return {
        "bad_words_ids": {"bad_words_ids": [plain[0][:1], plain[1][1:3]]},
        "suppress_tokens": {"suppress_tokens": [plain[0][0], plain[1][1]]},
        "begin_suppress_tokens": {"begin_suppress_tokens": [row[0] for row in plain]},
        "sequence_bias": {"sequence_bias": {(plain[0][0], 77): 1000.0, (plain[1][1],): -1000.0}},
        "repetition_penalty": {"repetition_penalty": 0.2},
        "no_repeat_ngram_size": {"no_repeat_ngram_size": 1, "sequence_bias": {(plain[0][0],): 100.0}},
        "encoder_repetition_penalty": {"encoder_repetition_penalty": 9.0},
        "encoder_no_repeat_ngram_size": {
            "encoder_no_repeat_ngram_size": 2,
            "sequence_bias": {(prompt[0],): 100.0, (prompt[0], prompt[1]): 200.0},
        },
        "forced_eos_token_id": {"forced_eos_token_id": 77},
        "eos_token_id": {"eos_token_id": [plain[0][2], plain[1][4]]},
        "min_new_tokens": {"eos_token_id": [plain[0][0], plain[1][1]], "min_new_tokens": 4},
        "min_length": {"eos_token_id": [plain[0][0], plain[1][1]], "min_length": width + 3},
        "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (2, 30.0)},
        "stop_strings": {
            "stop_strings": [next(word for word in words if word.strip().isalpha())],
            "tokenizer": tokenizer,
        },
        "watermarking_config": {"watermarking_config": WatermarkingConfig(bias=50.0, seeding_scheme="selfhash")},
        "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": allow_by_row},
        "max_length": {"max_length": width + 3, "max_new_tokens": None},
        "stopping_criteria": {"stopping_criteria": [MaxLengthCriteria(width + 2)]},
        "own end": {"stopping_criteria": [EosTokenCriteria([plain[0][1], plain[2][2]])]},
    }


@pytest.mark.parametrize("name", sorted(settings_of(build_causal(), tokenizer_of("bytes"))))
def test_an_honored_setting_has_the_effect_that_it_has_in_greedy_decoding(model, tokenizer, name):
    """In a padded batch, passed and in the model's generation config, by strategy and by processor."""
    settings = {"max_new_tokens": NEW, "pad_token_id": 3, **settings_of(model, tokenizer)[name]}
    settings = {key: value for key, value in settings.items() if value is not None}
    inputs = encode(tokenizer, PROMPTS)
    width = inputs["input_ids"].shape[1]
    expected = greedy(model, **settings)
    without = greedy(model, max_new_tokens=NEW, pad_token_id=3)
    assert expected.tolist() != without.tolist()
    found = rain(model, tokenizer, rain_config=quick_config(**GREEDY), **settings)
    assert found.sequences.tolist() == expected.tolist()
    call = {key: value for key, value in settings.items() if key not in vars(GenerationConfig())}
    own = copy.copy(model)
    own.generation_config = copy.deepcopy(model.generation_config)
    own.generation_config.update(**{key: value for key, value in settings.items() if key not in call})
    own.generation_config.max_new_tokens = settings.get("max_new_tokens")
    found = rain(own, tokenizer, rain_config=quick_config(**GREEDY), **call)
    assert found.sequences.tolist() == expected.tolist()
    processor = RAINLogitsProcessor(model, tokenizer, quick_config(**GREEDY), lambda texts: [0.0] * len(texts))
    by_processor = model.generate(**inputs, **settings, logits_processor=[processor])
    assert by_processor.tolist() == expected.tolist()
    assert width < expected.shape[1]


def test_n_grams_of_the_prompt_are_forbidden_in_every_branch(model, tokenizer):
    """Each prompt's own n-grams, in a batch, with several answers to each."""
    output = rain(
        model, tokenizer, max_new_tokens=5, num_return_sequences=2, do_sample=True, encoder_no_repeat_ngram_size=1
    )
    for row, record in enumerate(output.rain):
        prompt = set(tokenizer(PROMPTS[row // 2])["input_ids"])
        branches = [token for node, _, _ in walk(record.tree.root) for token in node["tokens"]]
        assert len(branches) > 10 and prompt.isdisjoint(branches)


def test_prompt_tokens_are_preferred_in_every_branch(model, tokenizer):
    settings = {"max_new_tokens": 4, "num_return_sequences": 2, "do_sample": True, "encoder_repetition_penalty": 1e4}
    output = rain(model, tokenizer, **settings)
    for row, record in enumerate(output.rain):
        prompt = {*tokenizer(PROMPTS[row // 2])["input_ids"], 3}  # generate counts the padding in
        nodes = [node for node, _, _ in walk(record.tree.root) if node["visits"] and node["tokens"]]
        assert nodes and all(node["tokens"][0] in prompt for node in nodes)


def test_a_field_of_a_later_version_is_named(model, tokenizer, caplog):
    config = GenerationConfig(max_new_tokens=2, pad_token_id=3)
    fields = {**vars(GenerationConfig()), "field_of_tomorrow": None}
    with pytest.MonkeyPatch.context() as patch:
        original = GenerationConfig.__init__

        def init(self, **kwargs):
            original(self, **kwargs)
            self.field_of_tomorrow = fields["field_of_tomorrow"]

        patch.setattr(GenerationConfig, "__init__", init)
        config.field_of_tomorrow = 3
        rain(model, tokenizer, PROMPTS[:1], generation_config=config)
    assert "`field_of_tomorrow` is set in the generation config, but this version" in caplog.text


def test_settings_without_effect_change_no_token(model, tokenizer):
    plain = rain(model, tokenizer, max_new_tokens=4).sequences
    settings = {"early_stopping": True, "length_penalty": 3.0, "prefill_chunk_size": 2, "disable_compile": True}
    assert torch.equal(rain(model, tokenizer, max_new_tokens=4, **settings).sequences, plain)
    for name in settings:
        assert name in WITHOUT_EFFECT
