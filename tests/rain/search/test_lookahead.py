"""The leaves that a lookahead predicts, against those that the search selects."""

from hypothesis import given, settings
from hypothesis import strategies as st
from support.rain import tree_of

from hf_interdistill.rain.search.lookahead import predict_leaves
from hf_interdistill.rain.search.tree import Candidate


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_the_lookahead_is_right_if_every_value_is_the_mean(values, count):
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
    predicted = predict_leaves(tree, [first], count)
    assert [(node, node.visits, node.true_visits, node.value) for node in tree.root.subtree()] == before
    expected, node = [], first
    for _ in range(count):
        tree.backup(node, mean)
        node = leaf()
        if not node.is_terminal and (node, node.true_visits == 0) not in expected:
            expected.append((node, node.true_visits == 0))
    assert predicted == expected
    assert predict_leaves(tree, [first], 0) == []


@given(st.integers(1, 12), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_the_lookahead_visits_known_candidates_without_adding_them(count, depth_known):
    def children(node):
        number = len(node.tokens_from_origin())
        return [Candidate((number, 1), 2.0), Candidate((number, 2), 1.0, number % 3 == 0)]

    def known(node):
        return children(node) if node.depth <= depth_known else None

    tree = tree_of([4.0, 3.0, 2.0])
    tree.backup(tree.root.children[0], 0.5)
    first, shape = tree.root.children[0], len(list(tree.root.subtree()))
    found = predict_leaves(tree, [first], count, known)
    predicted = [(node.tokens_from_origin(), is_first) for node, is_first in found]
    assert len(list(tree.root.subtree())) == shape and not first.children
    # The leaves that are selected when every leaf is expanded at its second visit, as in the search.
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
    assert predicted == expected
