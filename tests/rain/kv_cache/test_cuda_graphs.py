"""Replayed passes against eager ones: CUDA graphs on a GPU, and on a CPU what stands in for them."""

import gc
import weakref

import pytest
import torch
from support.cuda_graphs import search
from support.judges import SHORT
from support.rain import (
    OTHER,
    TEXT,
    TREE_FAMILIES,
    Repeating,
    assert_reads_separately,
    build_causal,
    build_on,
    forward,
    grown,
    likes_short_words,
    quick_config,
    separate,
)
from support.rain import tree_shape as shape

from hf_interdistill.rain.kv_cache import cuda_graphs as module
from hf_interdistill.rain.kv_cache.cuda_graphs import CAPTURES, CudaGraphs
from hf_interdistill.rain.kv_cache.factory import build_cache
from hf_interdistill.rain.kv_cache.forward import ForwardInput
from hf_interdistill.rain.kv_cache.tree_cache import TreeCache
from hf_interdistill.rain.scorers.base import Exchange
from hf_interdistill.rain.scorers.self_evaluation import _PREFIX_CACHES, SelfEvaluationScorer


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", TREE_FAMILIES)
def test_logits_equal_those_of_separate_sequences(family, attention, device):
    model = build_on(device, family, attention)
    cache = build_cache(model, 2)
    columns = torch.tensor([7, 3, 41])
    first, other = forward(cache, [ForwardInput(0, None, TEXT), ForwardInput(1, None, OTHER)])
    texts = {0: (first.handle, TEXT), 1: (other.handle, OTHER)}
    for step in range(8):  # the pool grows on the way, and slots are freed and written again
        (start, text), (beside, beside_text) = texts[0], texts[1]
        tails = [[3 + step], [60, 61, 62 + step], [60, 61, 62 + step, 5], [9, 8 * step]]
        second = ForwardInput(0, start, tails[1])
        inputs = [
            ForwardInput(0, start, tails[0]),
            second,
            ForwardInput(0, second, [5]),
            ForwardInput(1, beside, tails[3]),
        ]
        wanted = columns if step % 2 else None
        reads = forward(cache, inputs, wanted)
        sequences = [[*text, *tail] for tail in tails[:3]] + [[*beside_text, *tails[3]]]
        assert_reads_separately(model, reads, sequences, wanted)
        texts = {0: (reads[2].handle, sequences[2]), 1: (reads[3].handle, sequences[3])}
        cache.retain(0, [reads[2].handle])
    assert cache.slots.capacity > 64 and len(cache.graphs) == 2 and cache.graphs.failure is None


def test_half_precision_is_close(device):
    model = build_on(device, "llama").bfloat16()
    cache = grown(model)
    (read,) = forward(cache, [ForwardInput(0, None, TEXT)])
    (read,) = forward(cache, [ForwardInput(0, read.handle, [3])])
    assert read.logits.dtype == torch.float32
    wanted = separate(model, [*TEXT, 3])
    assert (read.logits - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_logits_stay_when_the_next_pass_is_replayed(device):
    cache = grown(build_on(device))
    (root,) = forward(cache, [ForwardInput(0, None, [*TEXT, 1])])
    (first,) = forward(cache, [ForwardInput(0, root.handle, [3])])
    kept = first.logits.clone()
    forward(cache, [ForwardInput(0, root.handle, [44])])
    torch.testing.assert_close(first.logits, kept, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("tokens", "seen", "sizes"),
    [
        *((1, 1, (16, 1024)), (16, 1024, (16, 1024)), (17, 1025, (64, 4096)), (512, 4096, (512, 4096))),
        *((256, 16_384, (256, 16_384)), (513, 64, None), (257, 4097, None), (1, 16_385, None)),
    ],
)
def test_sizes_of_a_pass(tokens, seen, sizes, model, monkeypatch):
    monkeypatch.setitem(CAPTURES, "cpu", Repeating)
    cache, graphs = TreeCache(model, 1), CudaGraphs()
    forward(cache, [ForwardInput(0, None, TEXT)])
    shapes = [graphs.shape(model, cache.cache.layers, tokens, 1, seen, None) for _ in range(2)]
    assert shapes[0] is None  # a shape that comes once is not worth a capture
    assert shapes[1] == (None if sizes is None else module.Shape(sizes[0], 16, sizes[1], None))


def test_padding_is_not_counted(device):
    cache = grown(build_on(device), steps=3)
    assert (cache.forward_passes, cache.forward_tokens) == (4, len(TEXT) + 3)


def change_in_place(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)


def change_tensors(model):
    for parameter in model.parameters():
        parameter.data = 1.1 * parameter.data


def change_module(model):
    model.model.layers[0].mlp = build_causal(seed=1).to(model.device).model.layers[0].mlp


def change_attention(model):
    model.set_attn_implementation("eager")


@pytest.mark.parametrize("change", [change_in_place, change_tensors, change_module, change_attention])
def test_changes_of_the_model_are_seen(change, device):
    model = build_on(device)
    cache = grown(model)
    before = next(iter(cache.graphs._captured.values()))
    change(model)
    cache.free_row(0)
    (root,) = forward(cache, [ForwardInput(0, None, OTHER)])
    for token in (3, 4, 5):
        (read,) = forward(cache, [ForwardInput(0, root.handle, [token])])
        assert_reads_separately(model, [read], [[*OTHER, token]])
    assert (before in cache.graphs._captured.values()) == (change is change_in_place)


@pytest.mark.parametrize("judges", [True, False])
def test_searches_grow_the_same_trees(judges, tokenizer, device, monkeypatch):
    """For prompts in lock-step, with commits. A judge has its own cache, and needs two columns of the logits."""
    model = build_on(device)
    made = []
    monkeypatch.setattr(module.CudaGraphs, "_capture_pass", _noting(module.CudaGraphs._capture_pass, made))
    plain, replayed = (
        search(
            model,
            tokenizer,
            quick_config(iterations=20, cuda_graphs=wanted),
            SelfEvaluationScorer(SHORT, cuda_graphs=wanted) if judges else likes_short_words,
        )
        for wanted in (False, True)
    )
    assert [shape(record.tree) for record in replayed.rain] == [shape(record.tree) for record in plain.rain]
    for name in ("forward_passes", "forward_tokens", "judge_calls"):
        assert replayed.rain_totals[name] == plain.rain_totals[name]
    assert len(made) > len(set(made))  # pools grew
    assert any(each.token_ids for each in made) == judges


def _noting(captured, made):
    def note(self, model, shape, *args):
        made.append(shape)
        return captured(self, model, shape, *args)

    return note


def test_no_graphs_where_they_are_not_wanted(tokenizer, device):
    model = build_on(device, max_position_embeddings=2048)
    assert build_cache(model, 1, cuda_graphs=False).graphs is None
    search(model, tokenizer, quick_config(cuda_graphs=False), "self", max_new_tokens=2)
    assert Repeating.captured == 0
    assert {kept.cache.cache.graphs for kept in _PREFIX_CACHES[model].values()} == {None}


@pytest.mark.gpu
def test_a_judge_keeps_no_weights(tokenizer):
    model = build_on("cuda")
    scorer = SelfEvaluationScorer(SHORT, model=model, tokenizer=tokenizer)
    for end in "abcd":
        scorer.score([Exchange("Tell me", f" that {end}")])
    (kept,) = _PREFIX_CACHES[model].values()
    assert len(kept.cache.cache.graphs) > 0
    head = weakref.ref(model.get_output_embeddings().weight)
    graphs = kept.cache.cache.graphs
    del model, scorer, kept
    gc.collect()
    assert head() is None and len(graphs) > 0


@pytest.mark.parametrize("is_captured_inside", [True, False])
def test_graphs_serve_in_and_out_of_inference_mode(is_captured_inside, device):
    model = build_on(device)
    with torch.inference_mode(is_captured_inside):
        cache = grown(model)
    with torch.inference_mode(not is_captured_inside):
        (root,) = forward(cache, [ForwardInput(0, None, OTHER)])
        for token in (3, 4, 5):
            (read,) = forward(cache, [ForwardInput(0, root.handle, [token])])
            assert_reads_separately(model, [read], [[*OTHER, token]])
    assert len(cache.graphs) == 1 and cache.graphs.failure is None


@pytest.mark.gpu
def test_graphs_are_replayed_on_the_current_stream():
    model = build_on("cuda")
    cache, stream = grown(model), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        (root,) = forward(cache, [ForwardInput(0, None, OTHER)])
        for token in (3, 4, 5):
            (read,) = forward(cache, [ForwardInput(0, root.handle, [token])])
            assert_reads_separately(model, [read], [[*OTHER, token]])
