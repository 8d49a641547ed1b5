"""What a search will visit next, against what it does visit."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hf_interdistill.rain.search.tree import Candidate
from rain.test_tree import tree_of


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_a_forecast_is_what_happens_if_values_are_the_mean(values, count):
    tree = tree_of([4.0, 3.0, 2.0, 1.0])

    def leaf():
        node = tree.root
        while node.children:
            node = tree.select(node)
        return node

    for number, value in enumerate(values):
        node = leaf()
        if node.true_visits and not node.is_terminal:
            tree.expand(node, [Candidate((number, 1), 2.0), Candidate((number, 2), 1.0, number % 3 == 0)])
        tree.backup(leaf(), value)
    before = [(node, node.visits, node.true_visits, node.value) for node in tree.root.subtree()]
    first, mean = leaf(), tree.root.value
    forecast = tree.forecast(first, count)
    assert [(node, node.visits, node.true_visits, node.value) for node in tree.root.subtree()] == before
    expected, node = [], first
    for _ in range(count):
        tree.backup(node, mean)
        node = leaf()
        if not node.is_terminal and (node, node.true_visits == 0) not in expected:
            expected.append((node, node.true_visits == 0))
    assert forecast == expected
    assert tree.forecast(first, 0) == []


@given(st.integers(1, 12), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_a_forecast_looks_at_children_that_are_known_and_not_there_yet(count, depth_known):
    def children(node):
        number = len(node.tokens_from_origin())
        return [Candidate((number, 1), 2.0), Candidate((number, 2), 1.0, number % 3 == 0)]

    def known(node):
        return children(node) if node.depth <= depth_known else None

    tree = tree_of([4.0, 3.0, 2.0])
    tree.backup(tree.root.children[0], 0.5)
    first, shape = tree.root.children[0], len(list(tree.root.subtree()))
    forecast = [(node.tokens_from_origin(), is_first) for node, is_first in tree.forecast(first, count, known)]
    assert len(list(tree.root.subtree())) == shape and not first.children
    # What happens when leaves do get these children on their second visit, as the search does.
    expected, node = [], first
    for _ in range(count):
        tree.backup(node, tree.root.value)
        node = tree.root
        while True:
            if not node.children and node.true_visits > 0 and not node.is_terminal and known(node):
                tree.expand(node, known(node))
            if not node.children:
                break
            node = tree.select(node)
        found = node.tokens_from_origin(), node.true_visits == 0
        if not node.is_terminal and found not in expected:
            expected.append(found)
    assert forecast == expected
