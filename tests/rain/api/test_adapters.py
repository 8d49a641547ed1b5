"""PEFT adapters: those that change weights are searched with, those that change the inputs are refused."""

import pytest
import torch
from support.rain import PROMPTS, build_causal, encode, likes_short_words, quick_config, rain

from hf_interdistill import RainDecoder, RAINLogitsProcessor

peft = pytest.importorskip("peft")
SIZES = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
VIRTUAL_TOKENS = {
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(**SIZES),
    "PREFIX_TUNING": lambda: peft.PrefixTuningConfig(**SIZES),
    "P_TUNING": lambda: peft.PromptEncoderConfig(**SIZES, encoder_hidden_size=16),
}


@pytest.mark.parametrize("kind", VIRTUAL_TOKENS)
def test_adapters_that_change_the_inputs_are_refused(tokenizer, kind):
    model = peft.get_peft_model(build_causal(), VIRTUAL_TOKENS[kind]()).eval()
    inputs = encode(tokenizer, PROMPTS[:1])
    decoder = RainDecoder(tokenizer, quick_config(), likes_short_words)
    processor = RAINLogitsProcessor(model, tokenizer, quick_config(), likes_short_words)
    for call in (
        {"strategy": "rain", "tokenizer": tokenizer, "rain_scorer": likes_short_words},
        {"custom_generate": decoder},
        {"logits_processor": [processor]},
    ):
        with pytest.raises(ValueError, match=f"The model has a {kind} adapter of PEFT"):
            model.generate(**inputs, max_new_tokens=3, **call)
    base = model.get_base_model()
    assert len(rain(base, tokenizer, PROMPTS[:1], max_new_tokens=3).rain[0].tokens) == 3


def test_lora_is_searched_with_the_adapted_weights(tokenizer):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj", "o_proj"])
    model = peft.get_peft_model(build_causal(), config).eval()
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight)
    greedy = quick_config(candidates=1, edge_lengths=(3,), iterations=1)
    found = rain(model, tokenizer, max_new_tokens=6, rain_config=greedy).sequences
    expected = model.generate(**encode(tokenizer, PROMPTS), max_new_tokens=6, do_sample=False)
    assert torch.equal(found, expected)
    with model.disable_adapter():
        plain = model.generate(**encode(tokenizer, PROMPTS), max_new_tokens=6, do_sample=False)
        assert torch.equal(rain(model, tokenizer, max_new_tokens=6, rain_config=greedy).sequences, plain)
    assert not torch.equal(plain, expected)


def test_adapters_that_act_by_row_are_refused(tokenizer):
    """Names of adapters for the rows of a batch, and aLoRA; the rows of a search are branches."""
    settings = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"], "init_lora_weights": False}
    names = {"adapter_names": ["default", "__base__", "default"]}
    (token,) = tokenizer("e")["input_ids"]
    for changes, call, message in (
        ({}, names, r"by row of the batch \(`adapter_names`\)"),
        ({"alora_invocation_tokens": [token]}, {}, r"by row of the batch \(`alora_offsets`\)"),
    ):
        model = peft.get_peft_model(build_causal(), peft.LoraConfig(**settings, **changes)).eval()
        with pytest.raises(ValueError, match=message):
            rain(model, tokenizer, PROMPTS, max_new_tokens=3, **call)
