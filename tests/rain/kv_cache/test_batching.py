"""Which branches run in one forward pass, and how a pass is laid out."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hf_interdistill.rain.kv_cache.batching import Branch, batch_rows, build_batch, dependency_groups, split_long
from hf_interdistill.rain.kv_cache.row_packing import pack_rows


def branch(row, tokens, slots, depends_on=None):
    return Branch(row, tokens, np.array(slots), depends_on)


def test_branches_run_with_those_that_they_follow():
    first, second = branch(0, [1], [1]), branch(1, [2], [2])
    child, other = branch(0, [3], [1, 3], first), branch(0, [4], [4])
    grandchild, cousin = branch(0, [5], [1, 3, 5], child), branch(1, [6], [2, 6], second)
    found = dependency_groups([first, second, child, other, grandchild, cousin])
    assert found == [[first, child, grandchild], [second, cousin], [other]]


def test_new_prompts_run_in_passes_of_their_own():
    assert split_long([1, 300, 2, 1, 280]) == [[0, 2, 3], [1, 4]]
    assert split_long([70, 90, 60, 77]) == [[0, 1, 2, 3]]
    assert split_long([30]) == [[0]]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=80))
def test_every_group_runs_once(lengths):
    passes = split_long(lengths)
    assert sorted(number for each in passes for number in each) == list(range(len(lengths)))


def widths(rows, lengths):
    return [sum(lengths[number] for number in row) for row in rows]


def test_branches_of_one_prompt_share_a_row_and_those_of_many_have_several():
    assert len(pack_rows([1] * 8, visible=400, visible_together=420)) == 1
    many = pack_rows([1] * 160, visible=400, visible_together=16 * 400)
    assert len(many) > 1
    assert max(widths(many, [1] * 160)) - min(widths(many, [1] * 160)) <= 1
    assert [number for row in many for number in row] == list(range(160))  # neighbors stay together


def test_long_texts_of_different_lengths_are_hardly_padded():
    lengths = [77, 50, 90, 65, 120, 80, 70, 55, 99, 60, 85, 75, 110, 40, 72, 95]
    rows = pack_rows(lengths, visible=1_230, visible_together=2_400)
    assert len(rows) > 1
    assert len(rows) * max(widths(rows, lengths)) < 1.1 * sum(lengths)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=80), st.integers(1, 2_000), st.integers(0, 20_000))
def test_every_branch_is_in_one_row(lengths, visible, more):
    rows = pack_rows(lengths, visible, visible + more)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))


def test_a_token_sees_its_ancestors_and_itself():
    trunk = branch(0, [11, 12], [1, 2])
    leaf, other = branch(0, [13], [1, 2, 5], trunk), branch(3, [21], [7, 8])
    assert batch_rows([trunk, leaf], capacity=64) == [[trunk, leaf]]
    batch = build_batch([[trunk, leaf], [other]], capacity=64)
    assert batch.input_ids.tolist() == [[11, 12, 13], [0, 0, 21]]  # the last token of each branch at the row's end
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 1]]
    assert batch.slots.tolist() == [[1, 2, 5], [0, 0, 8]]
    assert batch.gather_slots.tolist() == [[0, 1, 2, 5], [0, 7, 8, 0]]
    sees = [[set(batch.gather_slots[row][batch.mask[row, 0, token]]) for token in range(3)] for row in range(2)]
    assert sees == [[{1}, {1, 2}, {1, 2, 5}], [{0}, {0}, {7, 8}]]
