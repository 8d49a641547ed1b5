"""The judge `"self"` on a model that threads share, whose weights change, and whose prompts are messages."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.rain import PROMPTS, build_causal, encode, rain
from support.tokenizers import tokenizer_of

from hf_interdistill.rain.scorers.base import Exchange
from hf_interdistill.rain.scorers.self_evaluation import SelfEvaluationScorer


def judge_of(model, **settings):
    return SelfEvaluationScorer("harmlessness", vote="probability", **settings).bind(model, tokenizer_of("bytes"))


def chat(text, system=False):
    return [*([{"role": "system", "content": "Be brief."}] if system else []), {"role": "user", "content": text}]


def test_threads_search_one_model_as_they_would_alone():
    model, tokenizer = build_causal(max_position_embeddings=4096), tokenizer_of("bytes")

    def search(prompt):
        return rain(model, tokenizer, [prompt], rain_scorer="self", max_new_tokens=5).sequences.tolist()

    alone = [search(prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(search, [*PROMPTS, *PROMPTS]))
    assert together == [*alone, *alone]


def test_nothing_of_the_model_changes_during_a_search():
    """Meanwhile the stop strings of the model's config hold in the calls of other threads."""
    model, tokenizer = build_causal(), tokenizer_of("bytes")
    model.generation_config.stop_strings = ["ab"]
    before, seen = model.generation_config, []

    def scorer(texts):
        seen.append((model.generation_config is before, model.generation_config.stop_strings))
        return [0.0] * len(texts)

    output = rain(model, tokenizer, PROMPTS[:1], rain_scorer=scorer, max_new_tokens=4)
    assert seen and set(map(repr, seen)) == {"(True, ['ab'])"}
    assert output.rain[0].stats["committed_tokens"] > 0
    with pytest.raises(ValueError, match="tokenizer"):  # transformers' own rule for stop strings still holds
        model.generate(**encode(tokenizer, PROMPTS[:1]), max_new_tokens=2)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_examples_are_computed_once_for_messages_too(family):
    model = build_causal(family, max_position_embeddings=4096)
    judge = judge_of(model)
    examples = len(judge.tokenizer(judge.prompt.examples)["input_ids"])
    prompts = ["Hi", chat("Hi"), chat("Hi", system=True), [{"role": "assistant", "content": "Hi"}, *chat("Hi")]]
    _, first = judge.score_batch([Exchange(prompts[0], "a")])
    assert first.total_tokens > examples
    for prompt in prompts[1:]:
        (value,), costs = judge.score_batch([Exchange(prompt, "Hello there.")])
        assert costs.total_tokens < 0.5 * examples, prompt
        (fresh,), _ = judge_of(build_causal(family, max_position_embeddings=4096)).score_batch(
            [Exchange(prompt, "Hello there.")]
        )
        assert value == pytest.approx(fresh, abs=1e-5)


def write_all(model):
    for parameter in model.parameters():
        parameter.data.mul_(0.5)


def write_one_number(model):
    model.model.layers[0].self_attn.k_proj.weight.data[3, 5] += 40.0


def swap_rows(model):
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data[[0, 1]] = weight.data[[1, 0]]


@pytest.mark.parametrize("change", [write_all, write_one_number, swap_rows])
def test_weights_written_through_data_are_seen(change):
    model = build_causal(max_position_embeddings=4096)
    judge, exchange = judge_of(model), Exchange("Tell me", "Hello there.")
    before = judge.score_batch([exchange])[0]
    change(model)
    after = judge.score_batch([exchange])[0]
    torch.manual_seed(0)
    fresh = build_causal(max_position_embeddings=4096)
    change(fresh)
    right = judge_of(fresh).score_batch([exchange])[0]
    assert after == pytest.approx(right, abs=1e-6) and before != pytest.approx(right, abs=1e-6)


def test_adapters_that_are_switched_or_disabled_are_seen():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False, r=4)
    torch.manual_seed(0)
    model = peft.get_peft_model(build_causal(max_position_embeddings=4096), config)
    model.add_adapter("other", config)
    judge, exchange = judge_of(model.eval()), Exchange("Tell me", "Hello there.")

    def plain() -> float:
        (text, swapped), label = judge.prompt.texts(exchange), judge._labels
        values = []
        for order, each in enumerate((text, swapped)):
            ids = judge._texts.encode([[each]])[0][0]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1, list(label)]
            values.append(torch.softmax(logits.double(), -1)[order].item())
        return 2 * sum(values) / 2 - 1

    found = []
    for switch in ("default", "other", "default"):
        model.set_adapter(switch)
        found.append(judge.score_batch([exchange])[0][0])
        assert found[-1] == pytest.approx(plain(), abs=1e-5)
    with model.disable_adapter():
        found.append(judge.score_batch([exchange])[0][0])
        assert found[-1] == pytest.approx(plain(), abs=1e-5)
    assert len({round(value, 7) for value in found}) == 3
