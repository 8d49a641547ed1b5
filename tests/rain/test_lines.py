"""Which texts stand side by side in a forward pass."""

from hypothesis import given
from hypothesis import strategies as st

from hf_interdistill.rain.kv_cache.batching import families, split_passes


def test_children_stand_with_their_parents():
    assert families([None, None, 0, None, 2, 1]) == [[0, 2, 4], [1, 5], [3]]


def test_new_prompts_are_read_apart_from_running_texts():
    assert split_passes([1, 300, 2, 1, 280]) == [[0, 2, 3], [1, 4]]
    assert split_passes([70, 90, 60, 77]) == [[0, 1, 2, 3]]
    assert split_passes([30]) == [[0]]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=80))
def test_every_family_is_read_once(lengths):
    passes = split_passes(lengths)
    assert sorted(number for each in passes for number in each) == list(range(len(lengths)))
