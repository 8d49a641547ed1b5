"""Logits of a tree against those of separate sequences, and memory."""

import pytest
import torch
from support.rain import COPYING_FAMILIES, TREE_FAMILIES, build_causal, forward

from hf_interdistill.rain.kv_cache.copy_cache import CopyCache
from hf_interdistill.rain.kv_cache.factory import build_cache
from hf_interdistill.rain.kv_cache.forward import CacheHandle
from hf_interdistill.rain.kv_cache.forward import ForwardInput as Input
from hf_interdistill.rain.kv_cache.tree_cache import TreeCache

PROMPT, OTHER = list(range(10, 40)), list(range(50, 57))


def separate(model, tokens) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0, -1]


def assert_reads(model, reads, sequences):
    for read, tokens in zip(reads, sequences, strict=True):
        torch.testing.assert_close(read.logits, separate(model, tokens), atol=1e-5, rtol=1e-4)
        assert read.handle.length == len(tokens)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [*TREE_FAMILIES, *COPYING_FAMILIES])
def test_logits_equal_those_of_separate_sequences(family, attention):
    model = build_causal(family, attention)
    cache = build_cache(model, 3)
    assert isinstance(cache, CopyCache if family in COPYING_FAMILIES else TreeCache)
    first, other = reads = forward(cache, [Input(0, None, PROMPT), Input(2, None, OTHER)])
    assert_reads(model, reads, [PROMPT, OTHER])
    # Branches of several lengths in one pass, one of them on another, and a second row.
    four = Input(0, first.handle, [4, 5])
    branches = forward(
        cache,
        [
            Input(0, first.handle, [3]),
            four,
            Input(0, four, [6]),
            Input(2, other.handle, [9, 9]),
            Input(0, first.handle, [7]),
        ],
    )
    sequences = [[*PROMPT, 3], [*PROMPT, 4, 5], [*PROMPT, 4, 5, 6], [*OTHER, 9, 9], [*PROMPT, 7]]
    assert_reads(model, branches, sequences)
    further = forward(cache, [Input(0, branches[4].handle, [1]), Input(0, branches[0].handle, [1])])
    assert_reads(model, further, [[*PROMPT, 7, 1], [*PROMPT, 3, 1]])
    # After pruning, freed slots are written again, and the kept branch continues.
    cache.retain(0, [branches[2].handle])
    after = forward(cache, [Input(0, branches[2].handle, [8, 9, 10]), Input(0, branches[1].handle, [1])])
    assert_reads(model, after, [[*PROMPT, 4, 5, 6, 8, 9, 10], [*PROMPT, 4, 5, 1]])
    again = forward(
        cache,
        [
            Input(2, branches[3].handle, [7]),
            Input(1, None, OTHER),
            Input(0, after[0].handle, [2]),
        ],
    )
    assert_reads(model, again, [[*OTHER, 9, 9, 7], OTHER, [*PROMPT, 4, 5, 6, 8, 9, 10, 2]])


@pytest.mark.parametrize("family", TREE_FAMILIES)
def test_prompts_share_a_common_prefix(family):
    model = build_causal(family)
    cache = TreeCache(model, 4)
    texts = [[*PROMPT, 60, 61], [*PROMPT[:20], 70, 71, 72], OTHER]
    first = forward(cache, [Input(row, None, text) for row, text in enumerate(texts)])  # in one call
    assert_reads(model, first, texts)
    assert cache.forward_tokens == cache.num_tokens == len(PROMPT) + 2 + 3 + len(OTHER)
    again = forward(
        cache, [Input(3, None, texts[1]), Input(0, first[0].handle, [5])]
    )  # and in a later one; all but its end
    assert_reads(model, again, [texts[1], [*texts[0], 5]])
    assert cache.num_tokens == len(PROMPT) + 2 + 3 + len(OTHER) + 2
    assert cache.pop_row_counts(3) == (1, 1)
    # What one prompt leaves stays while another needs it.
    cache.free_row(0)
    assert cache.num_tokens == 20 + 3 + len(OTHER) + 1
    filler = list(range(100, 150))
    reads = forward(
        cache,
        [Input(1, first[1].handle, [8]), Input(0, None, filler), Input(3, again[0].handle, [9])],
    )
    assert_reads(model, reads, [[*texts[1], 8], filler, [*texts[1], 9]])
    for row in range(4):
        cache.free_row(row)
    assert cache.num_tokens == 0
    assert_reads(model, forward(cache, [Input(1, None, texts[1])]), [texts[1]])  # nothing is shared with what is gone


def test_short_prefixes_are_computed_again(model):
    cache = TreeCache(model, 2)
    forward(cache, [Input(0, None, PROMPT), Input(1, None, [*PROMPT[:15], 60, 61])])
    assert cache.num_tokens == len(PROMPT) + 17


def test_a_prefix_freed_in_part_is_not_shared(model):
    cache = TreeCache(model, 2)
    (root,) = forward(cache, [Input(0, None, PROMPT)])
    cache.truncate(root.handle, keep=CacheHandle(0, 10, root.handle.slots[:10]))
    reads = forward(cache, [Input(0, None, OTHER), Input(1, None, [*PROMPT, 60])])
    assert_reads(model, reads, [OTHER, [*PROMPT, 60]])


def test_memory_grows_with_tokens_and_freed_slots_are_used_again(model):
    cache = TreeCache(model, 1)
    (root,) = forward(cache, [Input(0, None, PROMPT)])
    branches = forward(cache, [Input(0, root.handle, [token, token]) for token in range(20, 30)])
    assert cache.num_tokens == len(PROMPT) + 10 * 2
    assert cache.cache.layers[0].keys.shape[0] == cache.slots.capacity == 64
    for _ in range(5):  # ten branches come and go without the pool growing
        cache.retain(0, [branches[0].handle])
        assert cache.num_tokens == len(PROMPT) + 2
        forward(cache, [Input(0, branches[0].handle, [token, token]) for token in range(20, 30)])
    assert cache.slots.capacity == 64
    forward(cache, [Input(0, branches[0].handle, list(range(60, 130)))])
    assert cache.slots.capacity == 128
    cache.free_row(0)
    assert cache.num_tokens == 0


def test_a_pool_serves_in_and_out_of_inference_mode(model):
    """As a judge's, which is kept from one call to the next."""
    cache = TreeCache(model, 1)
    with torch.inference_mode():
        (root,) = forward(cache, [Input(0, None, PROMPT)])
    (branch,) = forward(cache, [Input(0, root.handle, [1])])
    assert_reads(model, [branch], [[*PROMPT, 1]])
    with torch.inference_mode():
        (longer,) = forward(cache, [Input(0, branch.handle, OTHER * 6)])  # the pool grows
    assert_reads(model, forward(cache, [Input(0, longer.handle, [2])]), [[*PROMPT, 1, *OTHER * 6, 2]])


def test_dropping_frees_what_lies_beyond(model):
    cache = TreeCache(model, 1)
    (root,) = forward(cache, [Input(0, None, PROMPT)])
    (branch,) = forward(cache, [Input(0, root.handle, [1, 2, 3])])
    cache.truncate(branch.handle, keep=root.handle)
    assert cache.num_tokens == len(PROMPT)


def test_slots_freed_twice_are_free_once(model):
    """Else two prompts would write their keys and values into the same slot."""
    cache = TreeCache(model, 2)
    (root,) = forward(cache, [Input(0, None, PROMPT)])
    (branch,) = forward(cache, [Input(0, root.handle, [1, 2, 3])])
    cache.truncate(branch.handle, keep=root.handle)
    cache.retain(0, [root.handle])
    cache.truncate(branch.handle, keep=root.handle)
    reads = forward(cache, [Input(0, root.handle, [4, 5, 6]), Input(1, None, OTHER)])
    assert not set(reads[0].handle.slots.tolist()) & set(reads[1].handle.slots.tolist())
    assert_reads(model, reads, [[*PROMPT, 4, 5, 6], OTHER])


def test_passes_and_tokens_are_counted_by_row(model):
    cache = TreeCache(model, 2)
    forward(cache, [Input(0, None, PROMPT), Input(1, None, OTHER)])
    forward(cache, [Input(1, None, OTHER)])
    assert (cache.forward_passes, cache.forward_tokens) == (2, len(PROMPT) + 2 * len(OTHER))
    assert cache.pop_row_counts(1) == (2, 2 * len(OTHER))
    assert cache.pop_row_counts(1) == (0, 0)


def test_copying_is_logged(caplog):
    with caplog.at_level("WARNING", logger="hf_interdistill.rain.kv_cache.factory"):
        build_cache(build_causal("mistral"), 1)
    assert "branches by copying" in caplog.text and "not all of its layers have full attention" in caplog.text


def test_a_model_is_probed_again_when_circumstances_change():
    model = build_causal("gpt2")
    assert isinstance(build_cache(model, 1), TreeCache)
    model.train()
    with pytest.raises(ValueError, match=r"different tokens than GPT2LMHeadModel .* put it in evaluation mode"):
        build_cache(model, 1)  # dropout: no two readings are alike
    assert isinstance(build_cache(model.eval(), 1), TreeCache)


def test_a_model_that_ignores_the_mask_is_detected(model):
    """The trial on a few tokens detects what the structure does not show."""
    lone = build_causal()
    forward = lone.forward
    lone.forward = lambda *args, attention_mask=None, position_ids=None, logits_to_keep=0, **kwargs: forward(
        *args,
        attention_mask=torch.ones_like(attention_mask) if attention_mask is not None else None,
        position_ids=position_ids,
        logits_to_keep=logits_to_keep,
        **kwargs,
    )
    assert isinstance(build_cache(lone, 1), CopyCache)
    assert isinstance(build_cache(model, 1), TreeCache)


def test_a_new_prompt_runs_apart_from_running_rows(model):
    """Else every running row would be padded to the length of the new prompt."""
    cache = TreeCache(model, 3)
    first, second = forward(cache, [Input(0, None, OTHER), Input(1, None, OTHER)])
    long = [token % 800 for token in range(60, 220)]
    reads = forward(
        cache,
        [Input(0, first.handle, [3]), Input(2, None, long), Input(1, second.handle, [4, 5])],
    )
    assert cache.forward_passes == 1 + 2
    assert_reads(model, reads, [[*OTHER, 3], long, [*OTHER, 4, 5]])
