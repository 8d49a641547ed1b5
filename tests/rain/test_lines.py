"""Which texts stand side by side in a forward pass."""

from hypothesis import given
from hypothesis import strategies as st

from hf_interdistill.rain.lines import choose_lines, families, split_passes


def widths(lines, lengths):
    return [sum(lengths[place] for place in line) for line in lines]


def test_children_stand_with_their_parents():
    assert families([None, None, 0, None, 2, 1]) == [[0, 2, 4], [1, 5], [3]]


def test_new_prompts_are_read_apart_from_running_texts():
    assert split_passes([1, 300, 2, 1, 280]) == [[0, 2, 3], [1, 4]]
    assert split_passes([70, 90, 60, 77]) == [[0, 1, 2, 3]]
    assert split_passes([30]) == [[0]]


def test_lines_of_one_prompt_are_one_and_those_of_many_are_several():
    assert len(choose_lines([1] * 8, own=400, all_of_them=420)[0]) == 1
    many, _ = choose_lines([1] * 160, own=400, all_of_them=16 * 400)
    assert len(many) > 1
    assert max(widths(many, [1] * 160)) - min(widths(many, [1] * 160)) <= 1
    assert [place for line in many for place in line] == list(range(160))  # neighbors stay together


def test_long_texts_of_different_lengths_are_hardly_padded():
    lengths = [77, 50, 90, 65, 120, 80, 70, 55, 99, 60, 85, 75, 110, 40, 72, 95]
    lines, _ = choose_lines(lengths, own=1_230, all_of_them=2_400)
    assert len(lines) > 1
    assert len(lines) * max(widths(lines, lengths)) < 1.1 * sum(lengths)


def test_what_all_see_is_kept_apart_where_that_saves_more_than_it_costs():
    lengths = [80] * 8
    together, is_split = choose_lines(lengths, own=1_300, all_of_them=2_100)
    assert not is_split and len(together) < 8
    lines, is_split = choose_lines(lengths, own=1_300, all_of_them=2_100, common=1_157)
    assert is_split and len(lines) >= len(together)
    assert not choose_lines(lengths, own=1_300, all_of_them=2_100, common=1_157, split_cost=1e9)[1]
    assert not choose_lines([4], own=400, all_of_them=400, common=396)[1]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=80), st.integers(0, 2_000), st.integers(0, 20_000))
def test_every_family_is_read_once(lengths, own, more):
    passes = split_passes(lengths)
    assert sorted(number for each in passes for number in each) == list(range(len(lengths)))
    for numbers in passes:
        lines, is_split = choose_lines([lengths[number] for number in numbers], own, own + more, own // 2)
        assert not is_split or own
        assert sorted(place for line in lines for place in line) == list(range(len(numbers)))
