"""All entry points give the same tokens, and the wrapper leaves every other call unchanged."""

import inspect
import subprocess
import sys

import pytest
import torch
import transformers
from support.datasets import ROOT
from support.rain import build_causal, encode, likes_short_words, quick_config
from support.tokenizers import tokenizer_of
from transformers import GenerationConfig
from transformers.generation import MaxLengthCriteria
from transformers.generation.utils import GenerationMixin

from hf_interdistill import RainDecoder, RAINLogitsProcessor, register_rain, unregister_rain
from hf_interdistill.rain.api.export import export_custom_generate
from hf_interdistill.rain.api.registration import is_rain_registered, register_when_loaded
from hf_interdistill.rain.scorers.judge_prompt import JudgePrompt
from hf_interdistill.rain.scorers.self_evaluation import SelfEvaluationScorer

PROMPTS = ["How do I bake bread?", "Tell me"]


@pytest.fixture(autouse=True)
def registered():
    register_rain()
    yield
    register_rain()


def all_entry_points(
    model, tokenizer, tmp_path, inputs, scorer=likes_short_words, **settings
) -> dict[str, torch.Tensor]:
    config = quick_config()
    folder = tmp_path / "exported"
    export_custom_generate(folder, config)
    processor = RAINLogitsProcessor(
        model,
        tokenizer,
        config,
        scorer,
        max_new_tokens=settings["max_new_tokens"],
        attention_mask=inputs.get("attention_mask"),
        generation_config=GenerationConfig(**{**model.generation_config.to_diff_dict(), **settings}),
    )
    unregister_rain()
    results = {
        "decoder": model.generate(**inputs, custom_generate=RainDecoder(tokenizer, config, scorer), **settings),
        "processor": model.generate(**inputs, logits_processor=[processor], **settings),
        "folder": model.generate(
            **inputs,
            custom_generate=str(folder),
            trust_remote_code=True,
            tokenizer=tokenizer,
            rain_scorer=scorer,
            **settings,
        ),
    }
    register_rain()
    results["strategy"] = model.generate(
        **inputs, strategy="rain", tokenizer=tokenizer, rain_config=config, rain_scorer=scorer, **settings
    )
    return results


def assert_equal(results):
    for name, sequences in results.items():
        assert torch.equal(sequences, results["decoder"]), name


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_all_entry_points_give_the_same_tokens(family, tokenizer, tmp_path):
    model = build_causal(family)
    inputs = encode(tokenizer, PROMPTS)
    assert_equal(all_entry_points(model, tokenizer, tmp_path, inputs, max_new_tokens=7))


def test_all_entry_points_with_warpers_and_several_answers(model, tokenizer, tmp_path):
    settings = {"do_sample": True, "top_k": 8, "temperature": 0.7, "repetition_penalty": 1.2}
    inputs = encode(tokenizer, PROMPTS)
    assert_equal(
        all_entry_points(model, tokenizer, tmp_path, inputs, max_new_tokens=6, num_return_sequences=2, **settings)
    )


def test_all_entry_points_on_a_real_model(stories, tmp_path):
    model, tokenizer = stories
    inputs = encode(tokenizer, ["Once upon a time, there was a little girl named Lily.", "One day"])
    assert_equal(all_entry_points(model, tokenizer, tmp_path, inputs, max_new_tokens=12))


def test_all_entry_points_on_a_chat_model_with_its_own_judgment(model, tokenizer, tmp_path):
    judge = JudgePrompt(
        "kind", "Be kind. (A)\nBe mean. (B)\n", "{prompt}{completion}", " (A) {first} (B) {second}: (", "kind", "mean"
    )
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "How are you?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    scorer = SelfEvaluationScorer(judge, vote="probability")
    assert_equal(all_entry_points(model, tokenizer, tmp_path, inputs, scorer, max_new_tokens=6))


def test_plain_generate_is_untouched(model, tokenizer):
    inputs = encode(tokenizer, PROMPTS)
    calls = [
        {"max_new_tokens": 6},
        {"max_new_tokens": 6, "do_sample": True, "top_k": 5},
        {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2},
        {"max_new_tokens": 6, "return_dict_in_generate": True, "output_scores": True},
        {"generation_config": GenerationConfig(max_new_tokens=4, repetition_penalty=1.3)},
        {"max_new_tokens": 6, "stop_strings": ["a"], "tokenizer": tokenizer},
        {"max_new_tokens": 6, "custom_generate": lambda model, input_ids, **kwargs: input_ids[:, :1]},
        {"max_new_tokens": 3, "prompt_lookup_num_tokens": 2, "inputs": inputs["input_ids"][:1]},
    ]
    for call in calls:
        own = {} if "inputs" in call else inputs
        results = []
        for switch in (register_rain, unregister_rain):
            switch()
            torch.manual_seed(0)
            output = model.generate(**own, **call)
            results.append(output if torch.is_tensor(output) else output.sequences)
        assert torch.equal(*results), call


def test_a_positional_call_goes_through_every_entry_point(model, tokenizer):
    inputs = encode(tokenizer, PROMPTS[:1])
    own = {"rain_config": quick_config(), "rain_scorer": likes_short_words, "tokenizer": tokenizer}
    config = GenerationConfig(max_new_tokens=4, eos_token_id=2, pad_token_id=3)
    first = model.generate(inputs["input_ids"], config, strategy="rain", **own)
    assert torch.equal(first, model.generate(**inputs, max_new_tokens=4, strategy="rain", **own))


def test_registering_twice_has_no_effect():
    unregister_rain()
    original = GenerationMixin.generate
    unregister_rain()
    assert GenerationMixin.generate is original
    register_rain()
    wrapped = GenerationMixin.generate
    register_rain()
    assert GenerationMixin.generate is wrapped is not original
    assert inspect.signature(wrapped) == inspect.signature(original)
    unregister_rain()
    assert GenerationMixin.generate is original


def test_unregistered_the_strategy_is_unknown(model, tokenizer):
    unregister_rain()
    with pytest.raises(ValueError, match="strategy"):
        model.generate(**encode(tokenizer, PROMPTS), strategy="rain", max_new_tokens=2)


def test_another_strategy_is_left_to_transformers(model, tokenizer):
    for extra in ({}, {"custom_generate": RainDecoder(tokenizer, scorer=likes_short_words)}):
        with pytest.raises(ValueError, match="strategy"):
            model.generate(**encode(tokenizer, PROMPTS), strategy="snow", max_new_tokens=2, **extra)


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_package_is_light_and_registers_when_transformers_is_loaded():
    code = """
import sys
import hf_interdistill
from hf_interdistill.rain.api.registration import is_rain_registered, _Finder
assert "torch" not in sys.modules and "transformers" not in sys.modules
assert is_rain_registered()
import importlib; importlib.reload(hf_interdistill)
assert sum(isinstance(finder, _Finder) for finder in sys.meta_path) == 1
import transformers.generation.utils as utils
assert hasattr(utils.GenerationMixin.generate, "_rain_wrapped")
assert not any(isinstance(finder, _Finder) for finder in sys.meta_path)
assert type(utils.__loader__).__name__ == type(utils.__spec__.loader).__name__ == "SourceFileLoader"
import inspect; assert "class GenerationMixin" in inspect.getsource(utils)
hf_interdistill.unregister_rain()
assert not is_rain_registered()
print("fine")
"""
    assert run_python(code) == "fine"


def test_with_transformers_loaded_the_package_registers_at_once():
    unregister_rain()
    assert not is_rain_registered()
    register_when_loaded()
    assert hasattr(GenerationMixin.generate, "_rain_wrapped")


def test_unregistering_before_transformers_is_loaded(tmp_path):
    """With a stub of transformers, which loads fast."""
    package = tmp_path / "transformers" / "generation"
    package.mkdir(parents=True)
    (tmp_path / "transformers" / "__init__.py").touch()
    (package / "__init__.py").touch()
    source = "class GenerationMixin:\n    def generate(self, *args, **kwargs):\n        return args, kwargs\n"
    (package / "utils.py").write_text(source)
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
import hf_interdistill
hf_interdistill.unregister_rain()
from transformers.generation.utils import GenerationMixin
assert not hasattr(GenerationMixin.generate, "_rain_wrapped")
hf_interdistill.register_rain()
assert hasattr(GenerationMixin.generate, "_rain_wrapped")
assert GenerationMixin().generate(1, strategy="snow") == ((1,), {{"strategy": "snow"}})
print("fine")
"""
    assert run_python(code) == "fine"


def test_transformers_without_the_mixin_still_loads(tmp_path):
    package = tmp_path / "transformers" / "generation"
    package.mkdir(parents=True)
    (tmp_path / "transformers" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "utils.py").write_text("value = 7\n")
    code = f"""
import sys, warnings; sys.path.insert(0, {str(tmp_path)!r})
import hf_interdistill
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from transformers.generation.utils import value
assert value == 7 and "no `GenerationMixin.generate`" in str(caught[-1].message)
print("fine")
"""
    assert run_python(code) == "fine"


def test_the_folder_loads_with_a_model(model, tokenizer, tmp_path):
    """`from_pretrained(trust_remote_code=True)` makes the exported function the model's own `generate`."""
    model.save_pretrained(tmp_path)
    export_custom_generate(tmp_path, quick_config())
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    inputs = encode(tokenizer, PROMPTS)
    settings = {"rain_scorer": likes_short_words, "tokenizer": tokenizer, "max_new_tokens": 4}
    expected = model.generate(**inputs, strategy="rain", rain_config=quick_config(), **settings)
    assert torch.equal(loaded.generate(**inputs, **settings), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 6},
        {"max_new_tokens": 6, "do_sample": True, "top_k": 8, "temperature": 0.7, "repetition_penalty": 1.2},
        {"max_length": 40},
        {"generation_config": GenerationConfig(max_new_tokens=5, repetition_penalty=1.5, pad_token_id=3)},
        {"max_new_tokens": 5, "num_return_sequences": 2, "do_sample": True},
        {},
    ],
)
def test_a_processor_gets_the_settings_of_the_call(model, tokenizer, settings):
    inputs = encode(tokenizer, PROMPTS)
    processor = RAINLogitsProcessor(model, tokenizer, quick_config(), likes_short_words)
    decoder = RainDecoder(tokenizer, quick_config(), likes_short_words)
    expected = model.generate(**inputs, custom_generate=decoder, **settings)
    assert torch.equal(model.generate(**inputs, logits_processor=[processor], **settings), expected)
    config = settings.get("generation_config", GenerationConfig(**settings))
    positional = model.generate(inputs["input_ids"], config, [processor], attention_mask=inputs["attention_mask"])
    assert torch.equal(positional, expected)


def test_a_processor_without_a_length_is_refused(model, tokenizer):
    inputs = encode(tokenizer, PROMPTS[:1])
    processor = RAINLogitsProcessor(model, tokenizer, quick_config(), likes_short_words)
    model.generate(**inputs, logits_processor=[processor], max_new_tokens=2)
    unregister_rain()
    try:
        with pytest.raises(ValueError, match=r"Pass `max_new_tokens` to RAINLogitsProcessor too"):
            model.generate(**inputs, logits_processor=[processor], max_new_tokens=4)
        processor = RAINLogitsProcessor(model, tokenizer, quick_config(), likes_short_words, max_new_tokens=4)
        assert model.generate(**inputs, logits_processor=[processor], max_new_tokens=4).shape == (
            1,
            inputs["input_ids"].shape[1] + 4,
        )
    finally:
        register_rain()


def test_a_processor_can_be_reused(model):
    tokenizer = tokenizer_of("bytes")
    processor = RAINLogitsProcessor(model, tokenizer, quick_config(), likes_short_words, max_new_tokens=5)
    for prompts in (PROMPTS, PROMPTS[:1], PROMPTS[:1]):
        inputs = encode(tokenizer, prompts)
        decoder = RainDecoder(tokenizer, quick_config(), likes_short_words)
        expected = model.generate(**inputs, custom_generate=decoder, max_new_tokens=5)
        assert torch.equal(model.generate(**inputs, logits_processor=[processor], max_new_tokens=5), expected)
    assert len(processor.records) == 1 and processor.records[0].stats["committed_tokens"] == 5


@pytest.mark.parametrize("kind", ["criterion", "string", "string in the config", "own length"])
def test_a_processor_searches_to_the_ends_of_the_call(model, tokenizer, kind):
    """Texts end in the search as they do in the call, so that the tokens are those of the strategy."""
    inputs = encode(tokenizer, PROMPTS)
    width, common = inputs["input_ids"].shape[1], {"max_new_tokens": 8, "pad_token_id": 3}
    free = model.generate(**inputs, **common)[:, width:]
    letters = sorted({tokenizer.decode([token]) for token in free.flatten().tolist()} - {""})

    def long_enough(ids, scores=None, **kwargs):
        return (ids[:, width:].sum(1) % 3 == 0) & torch.tensor(ids.shape[1] > width + 1)

    ends = {
        "criterion": {"stopping_criteria": [long_enough]},
        "string": {"stop_strings": letters[:4]},
        "string in the config": {"generation_config": GenerationConfig(stop_strings=letters[:4])},
        "own length": {"stopping_criteria": [MaxLengthCriteria(width + 3)]},
    }[kind]
    settings = {**common, **ends}
    strategy = {"strategy": "rain", "rain_config": quick_config(), "rain_scorer": likes_short_words}
    expected = model.generate(**inputs, **settings, **strategy, tokenizer=tokenizer)
    processor = RAINLogitsProcessor(model, tokenizer, quick_config(), likes_short_words)
    found = model.generate(**inputs, **settings, logits_processor=[processor], tokenizer=tokenizer)
    assert found.tolist() == expected.tolist()
    unended = model.generate(**inputs, **common, **strategy, tokenizer=tokenizer)
    assert unended[:, : expected.shape[1]].tolist() != expected.tolist() or kind == "own length"
    reasons = [record.finish_reason for record in processor.records]
    assert ("length" if kind == "own length" else "stop") in reasons
