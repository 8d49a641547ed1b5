"""Heads that do only what is wanted, against whole ones."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_interdistill.rain import heads
from hf_interdistill.rain.cache import Feed, TreeCache
from hf_interdistill.rain.copying import CopyingCache
from hf_interdistill.rain.heads import PackedHead, head_for
from hf_interdistill.rain.split_attention import split_attention
from rain.conftest import TREE_FAMILIES, build_causal

TEXT = list(range(10, 30))
COLUMNS = torch.tensor([7, 3, 41])


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([TEXT, TEXT[::-1]])).logits


def with_bias(model):
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.linspace(-1, 1, head.out_features))
    return model


MODELS = {
    **{family: lambda family=family: build_causal(family) for family in TREE_FAMILIES},
    "soft cap": lambda: build_causal("gemma2", "eager", final_logit_softcapping=0.5),
    "bias": lambda: with_bias(build_causal()),
    "bfloat16": lambda: build_causal().bfloat16(),
}


@pytest.mark.parametrize("name", MODELS)
def test_narrow_and_packed_heads_give_the_logits_of_the_whole_one(name):
    model = MODELS[name]()
    whole = logits_of(model)
    assert whole.std() > 0.1
    tolerance = {"atol": 0.1, "rtol": 0.05} if name == "bfloat16" else {"atol": 1e-5, "rtol": 1e-4}
    with head_for(model, COLUMNS) as is_narrow:
        assert is_narrow
        torch.testing.assert_close(logits_of(model), whole[..., COLUMNS], **tolerance)
    with head_for(model, None, PackedHead()) as is_narrow:
        assert not is_narrow
        assert ("forward" in vars(model.get_output_embeddings())) == (name != "bfloat16")  # packed is float32 only
        torch.testing.assert_close(logits_of(model), whole, **tolerance)
    assert "forward" not in vars(model.get_output_embeddings())
    torch.testing.assert_close(logits_of(model), whole, atol=0, rtol=0)


def double_in_place(head):
    with torch.no_grad():
        head.weight.mul_(2)


def double_by_others(head):
    head.weight = torch.nn.Parameter(2 * head.weight.detach())


@pytest.mark.parametrize("change", [double_in_place, double_by_others])
@pytest.mark.parametrize("columns", [COLUMNS, None])
def test_new_weights_are_seen(columns, change):
    model, packed = build_causal(), PackedHead()
    with head_for(model, columns, packed):
        before = logits_of(model)
    change(model.get_output_embeddings())
    with head_for(model, columns, packed):
        torch.testing.assert_close(logits_of(model), 2 * before)


@pytest.fixture
def packings(monkeypatch):
    """The weights that are packed, and a trial of its own for what a test does to the packing."""
    packed = []
    pack = heads._pack

    def noting(weight):
        packed.append(weight)
        return pack(weight)

    heads._can_pack()
    monkeypatch.setattr(heads, "_pack", noting)
    yield packed
    heads._can_pack.cache_clear()


def test_a_head_is_packed_once(packings):
    cache = TreeCache(build_causal(), 1)
    for _ in range(3):
        cache.read([Feed(0, None, TEXT)])
        cache.clear(0)
    assert len(packings) == 1


def is_packed(model) -> bool:
    with head_for(model, None, PackedHead()):
        return "forward" in vars(model.get_output_embeddings())


def test_under_autocast_a_head_is_whole():
    cache = TreeCache(build_causal(), 1)
    assert is_packed(cache.model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_packed(cache.model)
        (read,) = cache.read([Feed(0, None, TEXT)])
        wanted = logits_of(cache.model)[0, -1].float()
    torch.testing.assert_close(read.logits, wanted, atol=0.1, rtol=0.05)


def test_without_onednn_a_head_is_whole():
    model = build_causal()
    assert is_packed(model)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not is_packed(model)
    with torch.inference_mode():
        double_by_others(model.get_output_embeddings())  # weights that do not count their changes
    assert not is_packed(model)


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError, None])
def test_a_torch_that_packs_in_another_way_is_left_alone(packings, monkeypatch, error, caplog):
    def multiply(states, packed, bias):
        if error is not None:
            raise error("no such operator")
        return torch.zeros(len(states), len(bias))

    monkeypatch.setattr(heads, "_multiply", multiply)
    heads._can_pack.cache_clear()
    with caplog.at_level("INFO", logger=heads.__name__):
        assert not is_packed(build_causal())
    assert ("does not pack it: no such operator" in caplog.text) == (error is not None)


def adapted_head():
    config = LoraConfig(target_modules=["lm_head"], init_lora_weights=False)
    return get_peft_model(build_causal(), config)


def hooked_head():
    model = build_causal()
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: output * 2)
    return model


def wrapped_head():
    model = build_causal()
    head = model.get_output_embeddings()
    head.forward = lambda states, plain=head.forward: plain(states) * 2
    return model


def forbidden_token():
    """A model that knows a token of its vocabulary by number."""
    model = build_causal()

    def forbid(module, args, output):
        output.logits[..., 50] = -100.0
        return output

    model.register_forward_hook(forbid)
    return model


@pytest.mark.parametrize("build", [adapted_head, hooked_head, wrapped_head, forbidden_token])
def test_a_head_that_is_not_plain_stays_whole(build):
    model = build()
    whole = logits_of(model)
    with head_for(model, COLUMNS) as is_narrow:
        assert not is_narrow
        torch.testing.assert_close(logits_of(model), whole)
    cache = TreeCache(model, 1)
    (read,) = cache.read([Feed(0, None, TEXT)], COLUMNS)
    assert cache.packed_head._packed is None  # a judge's cache outlives its model
    torch.testing.assert_close(read.logits, whole[0, -1, COLUMNS], atol=1e-5, rtol=1e-4)


def test_the_whole_head_comes_back_after_an_error():
    model = build_causal()
    with pytest.raises(RuntimeError), head_for(model, COLUMNS):
        raise RuntimeError
    assert logits_of(model).shape[-1] == model.config.vocab_size


def test_another_thread_gets_the_model_as_it_is():
    model = build_causal()
    whole = logits_of(model)
    for columns in (COLUMNS, None):
        with head_for(model, columns, PackedHead()), split_attention(model), ThreadPoolExecutor(1) as other:
            # A padded batch: it needs the mask that the model makes of it.
            mask = torch.ones(2, len(TEXT), dtype=torch.long)
            mask[1, :5] = 0
            padded = other.submit(forward_with, model, mask).result()
        torch.testing.assert_close(padded[0], whole[0], atol=0, rtol=0)
        torch.testing.assert_close(padded, forward_with(model, mask), atol=0, rtol=0)


def forward_with(model, mask) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([TEXT, TEXT[::-1]]), attention_mask=mask).logits


@pytest.mark.parametrize("kind", [TreeCache, CopyingCache])
def test_caches_give_the_columns_that_are_asked_for(kind):
    model = build_causal()
    whole, narrow = kind(model, 1), kind(model, 1)
    feeds = [Feed(0, None, TEXT), Feed(0, 0, [3]), Feed(0, 0, [4, 5])]
    for wanted, read in zip(whole.read(feeds), narrow.read(feeds, COLUMNS), strict=True):
        torch.testing.assert_close(read.logits, wanted.logits[COLUMNS], atol=1e-5, rtol=1e-4)
