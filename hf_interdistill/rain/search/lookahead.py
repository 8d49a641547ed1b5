"""Which leaves a search selects next: several for one step (virtual loss), and those that will probably follow.

Both run iterations on the tree itself with made-up values, and restore it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .tree import VALUE_RANGE, Candidate, Node, SearchTree

Candidates = Callable[[Node], Sequence[Candidate] | None]


class _TemporaryVisits:
    """Visits of a tree that are taken back."""

    def __init__(self, tree: SearchTree):
        self.tree = tree
        self._saved: dict[Node, tuple[float, int, float]] = {}

    def add(self, leaf: Node, value: float, weight: float = 1.0) -> None:
        """Visit a leaf and its ancestors up to the root with a value, which counts as `weight` visits."""
        for node in reversed(leaf.path()):
            self._saved.setdefault(node, (node.visits, node.true_visits, node.value))
            node.visits, node.true_visits = node.visits + weight, node.true_visits + 1
            node.value += weight * (value - node.value) / node.visits
            if node is self.tree.root:
                return

    def undo(self) -> None:
        """Restore all statistics."""
        for node, (visits, true_visits, value) in self._saved.items():
            node.visits, node.true_visits, node.value = visits, true_visits, value


@contextmanager
def _temporary_visits(tree: SearchTree) -> Iterator[_TemporaryVisits]:
    visits = _TemporaryVisits(tree)
    try:
        yield visits
    finally:
        visits.undo()


def select_leaves(tree: SearchTree, count: int) -> list[Node]:
    """Leaves of one step: each is selected as if those before it had been visited with the lowest value.

    Source: virtual loss of parallel tree search (Chaslot et al., 2008). A leaf that waits for its value counts as
    `virtual_loss` visits of value -1 on its path, so that the next selection takes another path.

    Args:
        tree: the tree; its statistics are the same afterwards.
        count: leaves at most. There are fewer if a selection comes back to a leaf of this step.

    Returns:
        Different leaves, at least one, in the order of selection.
    """
    leaves: list[Node] = []
    with _temporary_visits(tree) as visits:
        while True:
            leaf = _select_leaf(tree)
            if leaf in leaves:
                break
            leaves.append(leaf)
            if len(leaves) >= count:
                break
            visits.add(leaf, VALUE_RANGE[0], tree.config.virtual_loss)
    return leaves


def _select_leaf(tree: SearchTree) -> Node:
    node = tree.root
    while node.children:
        node = tree.select(node)
    return node


def predict_leaves(
    tree: SearchTree, leaves: Sequence[Node], count: int, known_candidates: Candidates = lambda node: None
) -> list[tuple[Node, bool]]:
    """Leaves that the next `count` iterations will select if every value equals the root's mean.

    Args:
        tree: the tree; it is the same afterwards.
        leaves: the leaves of the current step.
        count: iterations to look ahead.
        known_candidates: the candidates that a leaf will be expanded with, if known. The lookahead visits them, but
            they do not stay in the tree.

    Returns:
        Each leaf, and whether this would be its first visit. Leaves that end the text are left out.
    """
    expanded: list[Node] = []
    found: list[tuple[Node, bool]] = []
    value = tree.root.value
    with _temporary_visits(tree) as visits:
        for leaf in leaves:
            visits.add(leaf, value)
        for _ in range(count):
            node = tree.root
            while node.children or _expand(tree, node, known_candidates, expanded):
                node = tree.select(node)
            if not node.is_terminal and (node, node.true_visits == 0) not in found:
                found.append((node, node.true_visits == 0))
            visits.add(node, value)
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
