"""Logits of a tree against those of separate sequences, and memory."""

import pytest
import torch

from hf_interdistill.rain.kv_cache.copy_cache import CopyingCache
from hf_interdistill.rain.kv_cache.factory import build_cache
from hf_interdistill.rain.kv_cache.tree_cache import Feed, Handle, TreeCache
from rain.conftest import COPYING_FAMILIES, TREE_FAMILIES, build_causal

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
    assert isinstance(cache, CopyingCache if family in COPYING_FAMILIES else TreeCache)
    first, other = reads = cache.read([Feed(0, None, PROMPT), Feed(2, None, OTHER)])
    assert_reads(model, reads, [PROMPT, OTHER])
    # Branches of several lengths in one pass, one of them on another, and a second row.
    branches = cache.read(
        [
            Feed(0, first.handle, [3]),
            Feed(0, first.handle, [4, 5]),
            Feed(0, 1, [6]),
            Feed(2, other.handle, [9, 9]),
            Feed(0, first.handle, [7]),
        ]
    )
    sequences = [[*PROMPT, 3], [*PROMPT, 4, 5], [*PROMPT, 4, 5, 6], [*OTHER, 9, 9], [*PROMPT, 7]]
    assert_reads(model, branches, sequences)
    further = cache.read([Feed(0, branches[4].handle, [1]), Feed(0, branches[0].handle, [1])])
    assert_reads(model, further, [[*PROMPT, 7, 1], [*PROMPT, 3, 1]])
    # After pruning, freed slots are written again, and the kept branch reads on.
    cache.keep_only(0, [branches[2].handle])
    after = cache.read([Feed(0, branches[2].handle, [8, 9, 10]), Feed(0, branches[1].handle, [1])])
    assert_reads(model, after, [[*PROMPT, 4, 5, 6, 8, 9, 10], [*PROMPT, 4, 5, 1]])
    again = cache.read([Feed(2, branches[3].handle, [7]), Feed(1, None, OTHER), Feed(0, after[0].handle, [2])])
    assert_reads(model, again, [[*OTHER, 9, 9, 7], OTHER, [*PROMPT, 4, 5, 6, 8, 9, 10, 2]])


@pytest.mark.parametrize("family", TREE_FAMILIES)
def test_prompts_that_begin_alike_share_their_beginning(family):
    model = build_causal(family)
    cache = TreeCache(model, 4)
    texts = [[*PROMPT, 60, 61], [*PROMPT[:20], 70, 71, 72], OTHER]
    first = cache.read([Feed(row, None, text) for row, text in enumerate(texts)])  # in one call
    assert_reads(model, first, texts)
    assert cache.forward_tokens == cache.held_tokens == len(PROMPT) + 2 + 3 + len(OTHER)
    again = cache.read([Feed(3, None, texts[1]), Feed(0, first[0].handle, [5])])  # and in a later one; all but its end
    assert_reads(model, again, [texts[1], [*texts[0], 5]])
    assert cache.held_tokens == len(PROMPT) + 2 + 3 + len(OTHER) + 2
    assert cache.take_row(3) == (1, 1)
    # What one prompt leaves stays while another needs it.
    cache.clear(0)
    assert cache.held_tokens == 20 + 3 + len(OTHER) + 1
    filler = list(range(100, 150))
    reads = cache.read([Feed(1, first[1].handle, [8]), Feed(0, None, filler), Feed(3, again[0].handle, [9])])
    assert_reads(model, reads, [[*texts[1], 8], filler, [*texts[1], 9]])
    for row in range(4):
        cache.clear(row)
    assert cache.held_tokens == 0
    assert_reads(model, cache.read([Feed(1, None, texts[1])]), [texts[1]])  # nothing is shared with what is gone


def test_short_beginnings_are_read_anew(model):
    cache = TreeCache(model, 2)
    cache.read([Feed(0, None, PROMPT), Feed(1, None, [*PROMPT[:15], 60, 61])])
    assert cache.held_tokens == len(PROMPT) + 17


def test_a_beginning_that_was_freed_in_part_is_not_shared(model):
    cache = TreeCache(model, 2)
    (root,) = cache.read([Feed(0, None, PROMPT)])
    cache.drop(root.handle, keep=Handle(0, 10, root.handle.slots[:10]))
    reads = cache.read([Feed(0, None, OTHER), Feed(1, None, [*PROMPT, 60])])
    assert_reads(model, reads, [OTHER, [*PROMPT, 60]])


def test_memory_grows_with_tokens_and_freed_slots_are_used_again(model):
    cache = TreeCache(model, 1)
    (root,) = cache.read([Feed(0, None, PROMPT)])
    branches = cache.read([Feed(0, root.handle, [token, token]) for token in range(20, 30)])
    assert cache.held_tokens == len(PROMPT) + 10 * 2
    assert cache.cache.layers[0].keys.shape[0] == cache.pool.capacity == 64
    for _ in range(5):  # ten branches come and go without the pool growing
        cache.keep_only(0, [branches[0].handle])
        assert cache.held_tokens == len(PROMPT) + 2
        cache.read([Feed(0, branches[0].handle, [token, token]) for token in range(20, 30)])
    assert cache.pool.capacity == 64
    cache.read([Feed(0, branches[0].handle, list(range(60, 130)))])
    assert cache.pool.capacity == 128
    cache.clear(0)
    assert cache.held_tokens == 0


def test_a_pool_serves_in_and_out_of_inference_mode(model):
    """As a judge's, which is kept from one call to the next."""
    cache = TreeCache(model, 1)
    with torch.inference_mode():
        (root,) = cache.read([Feed(0, None, PROMPT)])
    (branch,) = cache.read([Feed(0, root.handle, [1])])
    assert_reads(model, [branch], [[*PROMPT, 1]])
    with torch.inference_mode():
        (longer,) = cache.read([Feed(0, branch.handle, OTHER * 6)])  # the pool grows
    assert_reads(model, cache.read([Feed(0, longer.handle, [2])]), [[*PROMPT, 1, *OTHER * 6, 2]])


def test_dropping_frees_what_lies_beyond(model):
    cache = TreeCache(model, 1)
    (root,) = cache.read([Feed(0, None, PROMPT)])
    (branch,) = cache.read([Feed(0, root.handle, [1, 2, 3])])
    cache.drop(branch.handle, keep=root.handle)
    assert cache.held_tokens == len(PROMPT)


def test_what_is_freed_twice_is_free_once(model):
    """Else two prompts would write their keys and values into the same slot."""
    cache = TreeCache(model, 2)
    (root,) = cache.read([Feed(0, None, PROMPT)])
    (branch,) = cache.read([Feed(0, root.handle, [1, 2, 3])])
    cache.drop(branch.handle, keep=root.handle)
    cache.keep_only(0, [root.handle])
    cache.drop(branch.handle, keep=root.handle)
    reads = cache.read([Feed(0, root.handle, [4, 5, 6]), Feed(1, None, OTHER)])
    assert not set(reads[0].handle.slots.tolist()) & set(reads[1].handle.slots.tolist())
    assert_reads(model, reads, [[*PROMPT, 4, 5, 6], OTHER])


def test_passes_and_tokens_are_counted_by_row(model):
    cache = TreeCache(model, 2)
    cache.read([Feed(0, None, PROMPT), Feed(1, None, OTHER)])
    cache.read([Feed(1, None, OTHER)])
    assert (cache.forward_passes, cache.forward_tokens) == (2, len(PROMPT) + 2 * len(OTHER))
    assert cache.take_row(1) == (2, 2 * len(OTHER))
    assert cache.take_row(1) == (0, 0)


def test_copying_is_said(caplog):
    with caplog.at_level("WARNING", logger="hf_interdistill.rain.kv_cache.factory"):
        build_cache(build_causal("mistral"), 1)
    assert "branches by copying" in caplog.text and "not all of its layers have full attention" in caplog.text


def test_a_model_is_tried_anew_when_circumstances_change():
    model = build_causal("gpt2")
    assert isinstance(build_cache(model, 1), TreeCache)
    model.train()
    with pytest.raises(ValueError, match=r"other tokens than GPT2LMHeadModel .* put it in evaluation mode"):
        build_cache(model, 1)  # dropout: no two readings are alike
    assert isinstance(build_cache(model.eval(), 1), TreeCache)


def test_a_model_that_ignores_the_mask_is_found_out(model):
    """The trial on a few tokens catches what the structure does not tell."""
    lone = build_causal()
    forward = lone.forward
    lone.forward = lambda *args, attention_mask=None, position_ids=None, logits_to_keep=0, **kwargs: forward(
        *args,
        attention_mask=torch.ones_like(attention_mask) if attention_mask is not None else None,
        position_ids=position_ids,
        logits_to_keep=logits_to_keep,
        **kwargs,
    )
    assert isinstance(build_cache(lone, 1), CopyingCache)
    assert isinstance(build_cache(model, 1), TreeCache)


def test_a_new_prompt_is_read_apart_from_running_rows(model):
    """Else every running row would be padded to the length of the new prompt."""
    cache = TreeCache(model, 3)
    first, second = cache.read([Feed(0, None, OTHER), Feed(1, None, OTHER)])
    long = [token % 800 for token in range(60, 220)]
    reads = cache.read([Feed(0, first.handle, [3]), Feed(2, None, long), Feed(1, second.handle, [4, 5])])
    assert cache.forward_passes == 1 + 2
    assert_reads(model, reads, [[*OTHER, 3], long, [*OTHER, 4, 5]])
