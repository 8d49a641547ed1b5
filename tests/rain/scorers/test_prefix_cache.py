"""The prefix cache of a judge: match, insert and evict."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rain import build_causal

from hf_interdistill.rain.scorers.cached_forward import CachedForward
from hf_interdistill.rain.scorers.prefix_cache import _CALLS_KEPT, common_prefix_length

PREFIX = [7, 8, 9, 10]
COLUMNS = torch.tensor([5, 6])
MODEL = build_causal()

# Few different tokens, so that texts often begin alike; two orders end differently.
_texts = st.lists(st.lists(st.integers(11, 12), max_size=6), min_size=1, max_size=4)


def contexts_of(texts, prefix=PREFIX):
    return [[[*prefix, *text, 20, 21], [*prefix, *text, 20, 22, 23]] for text in texts]


def read(shared, contexts):
    with shared.lend(MODEL):
        return shared.last_logits(contexts, ["p"] * len(contexts), lambda prompt: [], COLUMNS)


def plain(contexts):
    with torch.no_grad():
        rows = [[MODEL(torch.tensor([ids])).logits[0, -1, COLUMNS] for ids in orders] for orders in contexts]
    return torch.stack([torch.stack(orders) for orders in rows])


def tokens_of(texts) -> set:
    """Every different prefix of the texts: each is one token of a tree."""
    return {tuple(text[:stop]) for text in texts for stop in range(1, len(text) + 1)}


@given(st.lists(_texts, min_size=1, max_size=5), st.sampled_from([PREFIX, []]))
@settings(max_examples=25, deadline=None)
def test_cached_prefixes_are_not_computed_again_and_nothing_else_is_held(calls, prefix):
    shared = CachedForward(MODEL, list(prefix), 0)
    seen: set = set()
    for texts in calls:
        contexts = contexts_of(texts, prefix)
        logits, tokens = read(shared, contexts)
        torch.testing.assert_close(logits, plain(contexts), atol=1e-4, rtol=1e-4)
        kept = [[*text, 20] for text in texts]
        new = tokens_of(kept) - seen
        ends = 3 * len({tuple(text) for text in texts})  # 21; and 22, 23
        assert sum(tokens) == len(new) + ends
        seen |= new
        assert shared.cache.num_tokens == len(prefix) + len(seen)


def test_prefixes_not_used_lately_are_evicted():
    shared = CachedForward(MODEL, list(PREFIX), 0)
    old, young = contexts_of([[11, 11, 11, 11]]), contexts_of([[11, 12]])
    read(shared, old)
    for number in range(_CALLS_KEPT):
        read(shared, young)
        assert shared.cache.num_tokens == len(PREFIX) + 5 + 2, number
    read(shared, young)
    assert shared.cache.num_tokens == len(PREFIX) + 3
    logits, tokens = read(shared, old)
    torch.testing.assert_close(logits, plain(old), atol=1e-4, rtol=1e-4)
    assert tokens == [4 + 3]  # all but the prefix and the first token


def test_a_text_without_the_common_prefix_is_computed_whole():
    shared = CachedForward(MODEL, list(PREFIX), 0)
    odd = contexts_of([[11, 11]], PREFIX[:2])
    for _ in range(2):
        logits, tokens = read(shared, odd)
        torch.testing.assert_close(logits, plain(odd), atol=1e-4, rtol=1e-4)
        assert tokens == [len(odd[0][0]) + 2]
        assert shared.cache.num_tokens == len(PREFIX)


@pytest.mark.parametrize("orders", [1, 2])
def test_the_same_text_again_computes_its_end(orders):
    shared = CachedForward(MODEL, list(PREFIX), 0)
    contexts = [each[:orders] for each in contexts_of([[11, 12]])]
    read(shared, contexts)
    held = shared.cache.num_tokens
    logits, tokens = read(shared, contexts)
    torch.testing.assert_close(logits, plain(contexts), atol=1e-4, rtol=1e-4)
    assert tokens == [1 if orders == 1 else 3] and shared.cache.num_tokens == held


def test_common_length():
    assert common_prefix_length([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert common_prefix_length([[1, 2]]) == 2 and common_prefix_length([[1], [2]]) == 0
    assert common_prefix_length([[1, 2, 3], [9, 2, 3]], start=1) == 3  # the first token is not compared
