"""Which branches run in one forward pass, and how a pass is laid out."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hf_interdistill.rain.kv_cache.batching import Branch, batch_rows, build_batch, dependency_groups, split_long


def branch(row, tokens, slots, depends_on=None):
    return Branch(row, tokens, np.array(slots), depends_on)


def test_branches_run_with_those_that_they_follow():
    first, second = branch(0, [1], [1]), branch(1, [2], [2])
    child, other = branch(0, [3], [1, 3], first), branch(0, [4], [4])
    grandchild, cousin = branch(0, [5], [1, 3, 5], child), branch(1, [6], [2, 6], second)
    found = dependency_groups([first, second, child, other, grandchild, cousin])
    assert found == [[first, child, grandchild], [second, cousin], [other]]


def test_new_prompts_run_apart_from_running_texts():
    assert split_long([1, 300, 2, 1, 280]) == [[0, 2, 3], [1, 4]]
    assert split_long([70, 90, 60, 77]) == [[0, 1, 2, 3]]
    assert split_long([30]) == [[0]]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=80))
def test_every_group_runs_once(lengths):
    passes = split_long(lengths)
    assert sorted(number for each in passes for number in each) == list(range(len(lengths)))


def test_a_batch_has_a_row_for_each_prompt_and_a_token_sees_its_ancestors_and_itself():
    trunk = branch(0, [11, 12], [1, 2])
    leaf, other = branch(0, [13], [1, 2, 5], trunk), branch(3, [21], [7, 8])
    rows = batch_rows([trunk, other, leaf])
    assert rows == [[trunk, leaf], [other]]
    batch = build_batch(rows, capacity=64)
    assert batch.input_ids.tolist() == [[11, 12, 13], [0, 0, 21]]  # the last token of each branch at the row's end
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 1]]
    assert batch.slots.tolist() == [[1, 2, 5], [0, 0, 8]]
    assert batch.gather_slots.tolist() == [[0, 1, 2, 5], [0, 7, 8, 0]]
    sees = [[set(batch.gather_slots[row][batch.mask[row, 0, token]]) for token in range(3)] for row in range(2)]
    assert sees == [[{1}, {1, 2}, {1, 2, 5}], [{0}, {0}, {7, 8}]]
