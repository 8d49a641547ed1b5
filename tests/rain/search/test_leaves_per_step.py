"""Several leaves per step: the selection against eq. 1 worked out by hand, statistics against the judged values."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rain import tree_of
from support.search import Rules, drive

from hf_interdistill.rain.config import RainConfig
from hf_interdistill.rain.search.lookahead import select_leaves
from hf_interdistill.rain.search.requests import Commit, Decode, Embed, Judge
from hf_interdistill.rain.search.search import PromptSearch
from hf_interdistill.rain.search.tree import Candidate


def value_of(text: str, seed: int) -> float:
    """Any value of a text, in steps of a tenth."""
    return (hashlib.sha256(f"{seed} {text}".encode()).digest()[0] % 21 - 10) / 10


def grown_tree(values, **changes):
    tree = tree_of([4.0, 3.0, 2.0, 1.0], **changes)
    for number, value in enumerate(values):
        (node,) = select_leaves(tree, 1)
        if node.true_visits and not node.is_terminal:
            tree.expand(node, [Candidate((number, 1), 2.0), Candidate((number, 2), 1.0, number % 3 == 0)])
            (node,) = select_leaves(tree, 1)
        tree.backup(node, value)
    return tree


def select_by_hand(tree, count: int, virtual_loss: float, exploration: float = 2.0):
    """Leaves of a step with statistics kept beside the tree."""
    visits = {node: node.visits for node in tree.origin.subtree()}
    totals = {node: node.visits * node.value for node in tree.origin.subtree()}
    leaves = []
    while len(leaves) < count:
        path = [tree.root]
        while path[-1].children:
            parent = path[-1]
            scores = []
            for child in parent.children:
                known = (totals[child] / visits[child] + 1) / (2 + 1e-5) if visits[child] else 0.0
                bonus = exploration * child.prior * math.sqrt(visits[parent]) / (1 + visits[child])
                scores.append(known + bonus)
            path.append(parent.children[int(np.argmax(np.round(scores, 9)))])
        if path[-1] in leaves:
            break
        leaves.append(path[-1])
        for node in path:
            visits[node] += virtual_loss
            totals[node] -= virtual_loss
    return leaves


VALUES = st.lists(st.sampled_from([-1.0, -0.4, 0.3, 1.0]), max_size=14)


@given(VALUES, st.integers(1, 9), st.sampled_from([0.3, 1.0, 3.0]))
@settings(max_examples=80, deadline=None)
def test_leaves_of_a_step_are_those_of_virtual_losses(values, count, virtual_loss):
    tree = grown_tree(values, virtual_loss=virtual_loss)
    before = [(node, node.visits, node.true_visits, node.value) for node in tree.origin.subtree()]
    leaves = select_leaves(tree, count)
    assert [(node, node.visits, node.true_visits, node.value) for node in tree.origin.subtree()] == before
    assert leaves == select_by_hand(tree, count, virtual_loss)
    assert 1 <= len(leaves) == len(set(leaves)) <= count


def test_a_larger_virtual_loss_spreads_a_step_over_more_leaves():
    numbers = [len(select_leaves(grown_tree([1.0] * 12, virtual_loss=loss), 6)) for loss in (0.01, 1.0)]
    assert numbers[0] < numbers[1] == 6


def test_an_error_in_a_selection_leaves_no_virtual_visits(monkeypatch):
    tree = grown_tree([0.5] * 6)
    before = [(node.visits, node.true_visits, node.value) for node in tree.origin.subtree()]
    calls, select = [], tree.select
    monkeypatch.setattr(tree, "select", lambda node: calls.append(node) or (select(node) if len(calls) < 3 else 1 / 0))
    with pytest.raises(ZeroDivisionError):
        select_leaves(tree, 4)
    assert [(node.visits, node.true_visits, node.value) for node in tree.origin.subtree()] == before


def check_statistics(search, backups):
    """Visits and values of all nodes from the values backed up so far; each lists the root of its time."""
    expected = {}
    for leaf, value, root in backups:
        path = leaf.path()
        for node in path[path.index(root) :]:
            expected.setdefault(node, []).append(value)
    for node in search.tree.origin.subtree():
        values = expected.get(node, [])
        assert node.true_visits == len(values) and node.visits == len(values)
        assert node.value == pytest.approx(np.mean(values) if values else 0.0) and -1 <= node.value <= 1
        own = sum(leaf is node for leaf, _, _ in backups)
        below = sum(child.true_visits for child in node.children)
        assert node.true_visits <= own + below
        if node is not search.tree.origin and not node.is_committed:
            assert node.true_visits == own + below


@given(st.integers(0, 10_000), st.integers(1, 7), st.sampled_from([0.5, 1.0, 4.0]), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_statistics_are_those_of_the_judged_values_at_every_request(seed, leaves, virtual_loss, iterations):
    settings = {"candidates": 3, "iterations": iterations, "extra_iterations": 3, "min_visits": 2}
    config = RainConfig(**settings, leaves_per_step=leaves, virtual_loss=virtual_loss)
    search = PromptSearch(config, Rules(limit=12), has_encoder=False)
    backups, backup = [], search.tree.backup

    def recorded(leaf, value):
        backups.append((leaf, value, search.tree.root))
        backup(leaf, value)

    search.tree.backup = recorded

    def judge(text):
        check_statistics(search, backups)  # while a step waits for its values, no virtual visits are there
        return value_of(text, seed)

    requests = drive(search, judge, rollout=(8, seed % 20))
    check_statistics(search, backups)
    assert len(search.committed) == 12
    judged = [len(each.completions) for each in requests if isinstance(each, Judge)]
    assert sum(judged) == search.iterations == len(backups) and max(judged) <= leaves
    for node in search.tree.origin.subtree():
        if node.is_committed and node.parent is not None:
            assert (node.visits, node.value) == max((each.visits, each.value) for each in node.parent.children)


def test_the_budget_is_kept_exactly():
    """Values that settle nothing: each root gets its budget, though that is no multiple of the leaves."""
    config = RainConfig(candidates=3, iterations=10, extra_iterations=3, leaves_per_step=4)
    search = PromptSearch(config, Rules(limit=7), has_encoder=False)
    drive(search, lambda text: 0.0)
    root, budget, path = search.tree.origin, 10, []
    while root is not None:
        assert root.is_terminal or root.true_visits == budget
        path.append(root)
        root = next((child for child in root.children if child.is_committed), None)
        if root is not None:
            inherited = root.true_visits - search.rewinds.get(root, 0) - 1
            budget = max(10, inherited + 3)
    assert len(path) == 4


def test_a_step_makes_two_decode_requests_and_one_for_scores():
    counts = []
    for leaves in (1, 6):
        config = RainConfig(candidates=4, iterations=24, min_visits=99, leaves_per_step=leaves)
        search = PromptSearch(config, Rules(), has_encoder=False)
        requests = drive(search, lambda text: value_of(text, 1), steps=10_000)
        first = requests[: next(i for i, each in enumerate(requests) if isinstance(each, Commit))]
        counts.append([sum(isinstance(each, kind) for each in first) for kind in (Decode, Judge)])
        assert search.tree.origin.true_visits == 24
    (decodes, judged), (decodes_of_six, judged_of_six) = counts
    assert judged == 24 and 4 <= judged_of_six <= 8
    assert decodes_of_six <= 1 + 2 * judged_of_six < decodes
    tasks = [each.tasks for each in first if isinstance(each, Decode)]
    assert any(len({expansion is None for _, expansion in each}) == 2 for each in tasks)  # rollouts beside expansions
    assert all(len({node for node, _ in each}) == len(each) for each in tasks)


def test_texts_of_a_step_are_embedded_together_and_all_of_its_paths_are_widened():
    config = RainConfig(candidates=3, iterations=24, min_visits=99, leaves_per_step=5, exploration=20.0)
    search = PromptSearch(config.replace(iterations=60), Rules(), has_encoder=True)
    requests = drive(search, lambda text: 0.5 if text[0] == "a" else -1.0, steps=400)
    judged = sum(isinstance(each, Judge) for each in requests)
    assert 0 < sum(isinstance(each, Embed) for each in requests) <= judged
    for node in search.tree.origin.subtree():
        if node.embedding is not None:
            pending = len(search._pending_texts.get(node, ()))
            assert node.embedded + pending == node.true_visits or node.is_committed
    wide = [each for each in requests if isinstance(each, Decode) and each.speculate is None]
    assert wide and max(len(each.tasks) for each in wide) > 1
    assert all(len(node.children) <= 20 for node in search.tree.origin.subtree())


def test_one_leaf_per_step_is_the_published_search():
    """The requests of a whole search, but for embeddings, as they were before steps had several leaves."""
    config = RainConfig(candidates=3, iterations=14, extra_iterations=4, min_visits=3, similarity_threshold=0.5)
    search = PromptSearch(config, Rules(limit=17), has_encoder=True)
    requests = drive(search, lambda text: value_of(text, 3) / 2 - 0.4, lambda text: np.array([1.0, len(text) % 3]))
    requests = [each for each in requests if not isinstance(each, Embed)]
    kinds = "".join(type(each).__name__[0] for each in requests)
    nodes = [
        (node.tokens, round(node.visits, 9), node.true_visits, round(node.value, 9), node.is_committed)
        for node in search.tree.origin.subtree()
    ]
    assert (len(requests), search.iterations, len(nodes)) == (103, 43, 63)
    assert hashlib.sha256(f"{kinds} {nodes}".encode()).hexdigest()[:16] == "6dcbe71c611ccddf"
