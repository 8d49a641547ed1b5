"""Model inputs: those that `generate` adds are never refused; those that the user passes are used or refused."""

import pytest
import torch
from support.models import STUDENT_FAMILIES
from support.rain import PROMPTS, build_causal, encode, likes_short_words, quick_config, rain
from transformers import AutoConfig, DynamicCache, LlamaForCausalLM

from hf_interdistill import RainDecoder, register_rain, unregister_rain
from hf_interdistill.rain.kv_cache.forward import cache_argument


class WithImages(LlamaForCausalLM):
    """Accepts images, as vision-language models do; `generate` adds empty ones."""

    def forward(self, *args, pixel_values=None, image_sizes=None, **kwargs):
        assert pixel_values is None or not pixel_values.numel()
        return super().forward(*args, **kwargs)

    def _prepare_model_inputs(self, *args, **kwargs):
        ids, name, inputs = super()._prepare_model_inputs(*args, **kwargs)
        return ids, name, {"image_sizes": torch.zeros(0, 2), **inputs}


@pytest.fixture
def with_images():
    torch.manual_seed(0)
    return WithImages(AutoConfig.for_model("llama", **STUDENT_FAMILIES["llama"])).eval()


@pytest.fixture(params=["strategy", "decoder alone"])
def search(request, tokenizer):
    """RAIN with `strategy="rain"`, and with a `RainDecoder` without the `generate` wrapper."""

    def by_strategy(model, inputs, **kwargs):
        return rain(model, tokenizer, inputs, **kwargs).sequences

    def by_decoder(model, inputs, **kwargs):
        decoder = RainDecoder(tokenizer, quick_config(), likes_short_words)
        return model.generate(**inputs, custom_generate=decoder, **kwargs)

    if request.param == "strategy":
        yield by_strategy
        return
    unregister_rain()
    yield by_decoder
    register_rain()


def test_inputs_added_by_a_later_generate_are_not_refused(model, tokenizer, search, monkeypatch):
    inputs = encode(tokenizer, PROMPTS)
    expected = search(model, inputs, max_new_tokens=5)
    prepare = type(model)._prepare_cache_for_generation

    def adds(self, generation_config, model_kwargs, *args, **kwargs):
        prepare(self, generation_config, model_kwargs, *args, **kwargs)
        model_kwargs["cache_of_tomorrow"] = DynamicCache()
        model_kwargs["hint_of_tomorrow"] = "fast"

    monkeypatch.setattr(type(model), "_prepare_cache_for_generation", adds)
    assert torch.equal(search(model, inputs, max_new_tokens=5), expected)


def test_a_model_that_accepts_images_is_searched_without_images(with_images, tokenizer, search):
    inputs = encode(tokenizer, PROMPTS[:1])
    expected = search(with_images, inputs, max_new_tokens=4)
    for empty in (None, torch.zeros(0, 3, 8, 8), []):
        if isinstance(empty, list):  # transformers reads the shape of model inputs, but not of these
            assert torch.equal(search(with_images, {**inputs, "image_sizes": empty}, max_new_tokens=4), expected)
        else:
            assert torch.equal(search(with_images, {**inputs, "pixel_values": empty}, max_new_tokens=4), expected)


def test_user_inputs_that_the_search_would_ignore_are_refused(with_images, tokenizer, search):
    inputs = encode(tokenizer, PROMPTS)
    shifted = inputs["attention_mask"].cumsum(-1) + 5
    cache = DynamicCache(config=with_images.config)
    with torch.no_grad():
        with_images(input_ids=inputs["input_ids"][:, :1], use_cache=True, **{cache_argument(with_images): cache})
    cases = [
        ({"pixel_values": torch.ones(1, 3, 8, 8)}, "`pixel_values` was passed to the model, but RAIN reads token ids"),
        ({"position_ids": shifted}, "`position_ids` was passed to the model"),
        (
            {"past_key_values": cache},
            "`(cache|past_key_values)` was passed, but RAIN uses its own tree cache",
        ),
    ]
    for given, message in cases:
        with pytest.raises(ValueError, match=message):
            search(with_images, {**inputs, **given}, max_new_tokens=4)


def test_inputs_that_follow_from_ids_and_mask_are_accepted(model, tokenizer, search):
    inputs = encode(tokenizer, PROMPTS)
    expected = search(model, inputs, max_new_tokens=4)
    counted = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    assert torch.equal(search(model, {**inputs, "position_ids": counted}, max_new_tokens=4), expected)


@pytest.mark.parametrize("family", ["mamba", "mamba2", "rwkv", "jamba"])
def test_families_with_their_own_caches_search_correctly_or_are_refused(family, tokenizer, search):
    """A greedy search of one candidate gives the tokens of greedy decoding, or a clear error."""
    shape = {
        "mamba": {"state_size": 4, "expand": 2},
        "mamba2": {"state_size": 4, "expand": 2, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
        "rwkv": {"attention_hidden_size": 32, "context_length": 128},
        "jamba": {"num_experts": 1, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    }[family]
    model = build_causal(family, "sdpa" if family == "jamba" else "eager", **shape)
    inputs = encode(tokenizer, PROMPTS[:1])
    config = quick_config(candidates=1, edge_lengths=(3,), iterations=1)
    decoder = RainDecoder(tokenizer, config, likes_short_words)
    try:
        found = model.generate(**inputs, custom_generate=decoder, max_new_tokens=6)
    except ValueError as error:
        assert "different tokens than" in str(error), error
        return
    torch.testing.assert_close(found, model.generate(**inputs, max_new_tokens=6, do_sample=False))
