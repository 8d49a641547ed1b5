"""Lookahead: which leaves a search will probably select next, so that they can be decoded speculatively."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .tree import Candidate, Node, SearchTree

Candidates = Callable[[Node], Sequence[Candidate] | None]


def predict_leaves(
    tree: SearchTree, leaf: Node, count: int, known_candidates: Candidates = lambda node: None
) -> list[tuple[Node, bool]]:
    """Leaves that the next `count` iterations will select if every value equals the root's mean.

    The iterations are run on the tree itself, which is restored afterwards.

    Args:
        tree: the tree.
        leaf: the leaf of the current iteration.
        count: iterations to look ahead.
        known_candidates: the candidates that a leaf will be expanded with, if known. The lookahead visits them, but
            they do not stay in the tree.

    Returns:
        Each leaf, and whether this would be its first visit. Leaves that end the text are left out.
    """
    saved: dict[Node, tuple[float, int, float]] = {}
    expanded: list[Node] = []
    value, found, node = tree.root.value, [], leaf
    for _ in range(count):
        for each in reversed(node.path()):
            saved.setdefault(each, (each.visits, each.true_visits, each.value))
            each.visits, each.true_visits = each.visits + 1, each.true_visits + 1
            each.value += (value - each.value) / each.visits
            if each is tree.root:
                break
        node = tree.root
        while node.children or _expand(tree, node, known_candidates, expanded):
            node = tree.select(node)
        if not node.is_terminal and (node, node.true_visits == 0) not in found:
            found.append((node, node.true_visits == 0))
    for each, (visits, true_visits, mean) in saved.items():
        each.visits, each.true_visits, each.value = visits, true_visits, mean
    for each in expanded:
        each.children = []
    return found


def _expand(tree: SearchTree, node: Node, known_candidates: Candidates, expanded: list[Node]) -> bool:
    """Expand a leaf at its second visit with its known candidates; returns whether it was expanded."""
    candidates = known_candidates(node) if node.true_visits > 0 and not node.is_terminal else None
    if not candidates:
        return False
    tree.expand(node, candidates)
    expanded.append(node)
    return True
