"""The search tree: values computed by hand, and random scripts of operations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rain import tree_of

from hf_interdistill.rain.config import RainConfig
from hf_interdistill.rain.search.tree import (
    Candidate,
    Node,
    SearchTree,
    cosine_similarity,
    greedy_weight,
    update_embedding,
)


def test_expansion_smooths_the_root():
    tree = tree_of([6.0, 3.0, 1.0])
    # 0.75 p + 0.25 / 3
    assert [child.prior for child in tree.root.children] == pytest.approx(
        [0.45 + 1 / 12, 0.225 + 1 / 12, 0.075 + 1 / 12]
    )


def test_expansion_below_the_root_does_not_smooth():
    tree = tree_of([1.0])
    tree.expand(tree.root.children[0], [Candidate((1, 2), 3.0), Candidate((1, 3), 1.0)])
    assert [child.prior for child in tree.root.children[0].children] == [0.75, 0.25]


def test_weights_that_underflow_become_uniform():
    tree = tree_of([0.0, 0.0])
    assert [child.prior for child in tree.root.children] == [0.5, 0.5]


def test_selection_by_hand():
    tree = tree_of([3.0, 1.0], root_uniform=0.0)
    first, second = tree.root.children
    tree.backup(first, 0.5)
    # (0.5 + 1) / (2 + 1e-5) + 2 * 0.75 * sqrt(1) / 2 against 0 + 2 * 0.25 * 1 / 1
    assert tree.selection_score(first) == pytest.approx(1.5 / 2.00001 + 0.75)
    assert tree.selection_score(second) == pytest.approx(0.5)
    assert tree.select(tree.root) is first
    for _ in range(3):
        tree.backup(first, -1.0)
    # first: q = (0.5 - 3) / 4 = -0.625, n = 4, root 4: 0.375 / 2.00001 + 2 * 0.75 * 2 / 5; second: 2 * 0.25 * 2 / 1
    assert tree.selection_score(first) == pytest.approx(0.375 / 2.00001 + 0.6)
    assert tree.selection_score(second) == pytest.approx(1.0)
    assert tree.select(tree.root) is second


def test_backup_by_hand():
    tree = tree_of([1.0, 1.0])
    tree.expand(tree.root.children[0], [Candidate((5, 6), 1.0)])
    leaf = tree.root.children[0].children[0]
    for value in (1.0, -1.0, 0.0, 1.0):
        tree.backup(leaf, value)
    for node in leaf.path():
        assert (node.visits, node.true_visits, node.value) == (4, 4, pytest.approx(0.25))
    assert tree.root.children[1].true_visits == 0


def test_backup_refuses_a_value_out_of_range():
    with pytest.raises(ValueError, match=r"1.5 is outside \[-1, 1\]"):
        tree_of([1.0]).backup(Node(), 1.5)


def test_similar_siblings_share_the_value():
    tree = tree_of([1.0, 1.0, 1.0, 1.0])
    first, close, far, unvisited = tree.root.children
    update_embedding(close, np.array([0.96, 0.28]))
    update_embedding(far, np.array([0.6, 0.8]))
    tree.backup(close, -1.0)
    tree.backup(far, -1.0)
    update_embedding(first, np.array([1.0, 0.0]))
    tree.backup(first, 1.0)
    weight = 0.2 * 0.96  # eq. 2
    assert close.value == pytest.approx((-1 + weight) / (1 + weight))
    assert close.visits == pytest.approx(1 + weight)
    assert close.true_visits == 1
    assert (far.value, far.visits) == (-1.0, 1.0)
    assert (unvisited.value, unvisited.visits) == (0.0, 0.0)


def test_mean_embedding():
    node = Node()
    for vector in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0]):
        update_embedding(node, np.array(vector))
    assert node.embedding == pytest.approx([2 / 3, 2 / 3])
    assert cosine_similarity(np.zeros(2), np.ones(2)) == 0.0


@pytest.mark.parametrize(
    ("greedy", "others", "expected"),
    [(0.5, [], 0.5), (0.5, [0.1, 0.2], 0.3), (0.25, [0.1, 0.2], 0.3), (0.5, [0.3, 0.1, 0.2], 0.5), (0.9, [0.2], 0.4)],
)
def test_weight_of_the_greedy_token_set(greedy, others, expected):
    assert greedy_weight(greedy, others) == pytest.approx(expected)


def similar_children(values, embeddings, tokens=1) -> SearchTree:
    """A tree whose root's children are visited once each."""
    tree = SearchTree(RainConfig())
    tree.expand(tree.root, [Candidate((number,) * tokens, 1.0) for number in range(len(values))])
    for child, value, embedding in zip(tree.root.children, values, embeddings, strict=True):
        update_embedding(child, np.array(embedding))
        tree.backup(child, value)
    return tree


def test_widening_requires_similar_children_of_low_value():
    same = [[1.0, 0.0], [1.0, 0.0]]
    assert similar_children([-1, -0.5], same).wants_widening(similar_children([-1, -0.5], same).root)
    tree = similar_children([-1, 0.0], same)
    assert not tree.wants_widening(tree.root)  # the best child is not below 0
    # variance (0.2^2 / 2, 0.2^2 / 2) has norm 0.0283: below 0.03; with 0.21 it is 0.0312
    for distance, expected in ((0.2, True), (0.21, False)):
        tree = similar_children([-1, -1], [[0.5, 0.5], [0.5 + distance, 0.5 + distance]])
        assert tree.wants_widening(tree.root) is expected
    # the threshold grows with the tokens of an edge
    tree = similar_children([-1, -1], [[0.5, 0.5], [0.71, 0.71]], tokens=2)
    assert tree.wants_widening(tree.root)


def test_widening_waits_for_unvisited_children_and_stops_at_the_maximum():
    tree = similar_children([-1, -1], [[1.0, 0.0]] * 2)
    tree.root.children[1].embedding = None
    assert not tree.wants_widening(tree.root)
    tree = similar_children([-1] * 20, [[1.0, 0.0]] * 20)
    assert not tree.wants_widening(tree.root)
    tree = similar_children([-1] * 19, [[1.0, 0.0]] * 19)
    assert tree.wants_widening(tree.root)


def test_a_lone_child_can_widen():
    tree = similar_children([-1], [[1.0, 0.0]])
    assert tree.wants_widening(tree.root)


def test_widening_gives_the_share_of_all_weights():
    tree = tree_of([1.0])
    child = tree.root.children[0]
    tree.expand(child, [Candidate((1, 1), 3.0), Candidate((1, 2), 1.0)])
    assert tree.widen(child, Candidate((1, 3), 1.0))
    assert [each.prior for each in child.children] == [0.75, 0.25, 0.2]
    assert not tree.widen(child, Candidate((1, 3), 1.0))
    assert tree.widen(tree.root, Candidate((7,), 1.0))
    assert tree.root.children[-1].prior == pytest.approx(0.75 * 0.5 + 0.25 * 0.5)


def test_settled_by_visits_and_value():
    tree = tree_of([1.0, 1.0], min_visits=2)
    child = tree.root.children[0]
    for expected in (False, False, True):
        tree.backup(child, 1.0)
        assert tree.is_settled() is expected
    tree = tree_of([1.0, 1.0], min_visits=2)
    for _ in range(5):
        tree.backup(tree.root.children[0], 0.8)  # not above the threshold
    assert not tree.is_settled()


def test_budget_counts_kept_visits():
    tree = tree_of([1.0, 1.0], iterations=4, extra_iterations=3)
    child = tree.root.children[0]
    for _ in range(4):
        assert not tree.is_settled()
        tree.backup(child, 0.0)
    assert tree.is_settled()
    assert tree.commit() is child
    assert tree.budget == 4 + 3
    assert not tree.is_settled()


def test_commit_takes_the_most_visited_and_ties_by_value():
    tree = tree_of([1.0, 1.0, 1.0])
    _, second, third = tree.root.children
    for node, value in ((second, 0.1), (third, 0.2)):
        tree.backup(node, value)
    tree.expand(third, [Candidate((4, 4), 3.0), Candidate((4, 5), 1.0)])
    assert tree.commit() is third
    assert tree.root is third and third.is_committed and not second.is_committed
    # 0.75 p + 0.25 / 2
    assert [child.prior for child in third.children] == pytest.approx([0.6875, 0.3125])


def test_only_open_leaves_expand():
    tree = tree_of([1.0])
    with pytest.raises(ValueError, match="Only a leaf"):
        tree.expand(tree.root, [Candidate((1,), 1.0)])
    with pytest.raises(ValueError, match="at least one candidate"):
        tree.expand(tree.root.children[0], [])
    ended = Node(is_terminal=True)
    with pytest.raises(ValueError, match="does not end"):
        tree.expand(ended, [Candidate((1,), 1.0)])


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["iterate", "iterate", "iterate", "widen", "commit"]),
        st.integers(1, 5),
        st.floats(-1, 1),
        st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(OPERATIONS, st.booleans())
def test_random_scripts_lose_nothing(script, has_embeddings):
    tree = SearchTree(RainConfig())
    made, as_leaf = {tree.origin}, {}
    counter = iter(range(10**6))

    def candidates(count):
        return [Candidate((next(counter),), 1.0 + number) for number in range(count)]

    for kind, count, value, vector in script:
        if kind == "commit" and tree.root.children:
            tree.commit()
        elif kind == "widen" and tree.root.children:
            tree.widen(tree.root, candidates(1)[0])
        elif kind == "iterate":
            leaf = tree.root
            while leaf.children:
                leaf = tree.select(leaf)
            if leaf is tree.root or leaf.true_visits:
                tree.expand(leaf, candidates(count))
                leaf = tree.select(leaf)
            for node in leaf.path() if has_embeddings else ():
                update_embedding(node, np.array(vector))
            tree.backup(leaf, value)
            as_leaf[leaf] = as_leaf.get(leaf, 0) + 1
        made.update(tree.origin.subtree())
        assert set(tree.origin.subtree()) == made
    check_invariants(tree, as_leaf, has_embeddings)


def check_invariants(tree, as_leaf, has_embeddings):
    committed = [node for node in tree.origin.subtree() if node.is_committed]
    assert [node for node in tree.root.path() if node.is_committed] == committed
    for node in tree.origin.subtree():
        assert -1 <= node.value <= 1
        assert node.visits >= node.true_visits - 1e-9
        assert has_embeddings or node.visits == node.true_visits
        assert node.prior >= 0 and math.isfinite(node.prior)
        below = sum(child.true_visits for child in node.children) + as_leaf.get(node, 0)
        # A visit counts up to the root it started from, so only nodes above the current root may have fewer.
        is_above = node is not tree.root and node in tree.root.path()
        assert node.true_visits <= below if is_above else node.true_visits == below
        assert all(child.parent is node and child.depth == node.depth + 1 for child in node.children)
