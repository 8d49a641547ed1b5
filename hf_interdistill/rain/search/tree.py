"""The search tree: selection, backup, widening and commit, in plain numbers.

Nothing here knows a model or a tokenizer: a token set is a tuple of integers, an embedding a NumPy vector.

Source: arXiv 2309.07124, eq. 1 (selection) and eq. 2 (credit of similar siblings); order of operations as in the
authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..config import RainConfig

VALUE_RANGE = (-1.0, 1.0)
_EPSILON = 1e-5


@dataclass(eq=False)
class Node:
    """A token set, and what the search knows of it.

    Args:
        tokens: token ids of the edge from the parent; empty at the origin.
        prior: probability of the edge among its siblings.
        weight: the same before normalization.
        visits: `n`; fractional, for similar siblings share values.
        true_visits: visits through this node.
        value: mean value, between -1 and 1.
        embedding: mean embedding of the texts from here to the end of each rollout.
        is_terminal: whether the text ends with this node.
    """

    tokens: tuple[int, ...] = ()
    prior: float = 1.0
    weight: float = 1.0
    parent: Node | None = None
    depth: int = 0
    is_terminal: bool = False
    children: list[Node] = field(default_factory=list)
    visits: float = 0.0
    true_visits: int = 0
    value: float = 0.0
    embedding: np.ndarray | None = None
    embedded: int = 0
    is_committed: bool = False

    def path(self) -> list[Node]:
        """Nodes from the origin to this one, both included."""
        nodes = [self]
        while nodes[-1].parent is not None:
            nodes.append(nodes[-1].parent)
        return nodes[::-1]

    def tokens_from_origin(self) -> tuple[int, ...]:
        """All token ids from the origin to the end of this node."""
        return tuple(token for node in self.path() for token in node.tokens)

    def subtree(self) -> Iterator[Node]:
        """This node and all below it, parents first."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))


@dataclass(frozen=True)
class Candidate:
    """A token set that may become a child: its tokens, its unnormalized weight, and whether it ends the text."""

    tokens: tuple[int, ...]
    weight: float
    is_terminal: bool = False


def greedy_weight(greedy: float, others: Sequence[float]) -> float:
    """Weight of the greedy token set: `max(min(p_g, sum of others), max of others + min of others)`."""
    if not others:
        return greedy
    return max(min(greedy, sum(others)), max(others) + min(others))


class SearchTree:
    """A tree, its current root, and the operations of the search.

    Args:
        config: the constants.

    Relations: `search.py` decides what to do with it; what is pruned stays in the tree for the views.
    """

    def __init__(self, config: RainConfig):
        self.config = config
        self.origin = Node()
        self.root = self.origin
        self.budget = config.iterations
        self.rewinds = 0

    def release(self) -> None:
        """Take the nodes apart: parents and children hold each other, and would wait for the garbage collector."""
        for node in list(self.origin.subtree()):
            node.parent, node.children = None, []

    def select(self, node: Node) -> Node:
        """The child of `node` with the largest score of eq. 1; the first of equals."""
        return max(node.children, key=self.selection_score)

    def selection_score(self, node: Node) -> float:
        """`(q - q_min) / (q_max - q_min + 1e-5) + c p sqrt(n_parent) / (1 + n)`, the first term 0 if unvisited."""
        low, high = VALUE_RANGE
        exploitation = (node.value - low) / (high - low + _EPSILON) if node.visits > 0 else 0.0
        exploration = self.config.exploration * node.prior * math.sqrt(node.parent.visits) / (1 + node.visits)
        return exploitation + exploration

    def expand(self, node: Node, candidates: Sequence[Candidate]) -> None:
        """Give a leaf its children; priors are the normalized weights, smoothed at the root."""
        if node.children or node.is_terminal:
            raise ValueError("Only a leaf that does not end the text can be expanded; this node has children or ends.")
        if not candidates:
            raise ValueError("An expansion needs at least one candidate, but there is none.")
        total = sum(candidate.weight for candidate in candidates)
        for candidate in candidates:
            share = candidate.weight / total if total > 0 else 1 / len(candidates)
            node.children.append(_child(node, candidate, share))
        if node is self.root:
            self._smooth()

    def _smooth(self) -> None:
        """`p <- (1 - u) p + u / k` for the root's children, normalized."""
        children, uniform = self.root.children, self.config.root_uniform
        smoothed = [(1 - uniform) * child.prior + uniform / len(children) for child in children]
        for child, prior in zip(children, smoothed, strict=True):
            child.prior = prior / sum(smoothed)

    def wants_widening(self, node: Node) -> bool:
        """Whether an inner node on the way down gets one more candidate.

        All children must be visited and alike (norm of the variance of their embeddings below the threshold times the
        tokens of an edge), and the best of them bad. A lone child has variance 0. Without embeddings, never.
        """
        children, config = node.children, self.config
        if not children or len(children) >= config.max_children:
            return False
        if any(child.embedding is None for child in children):
            return False
        if max(child.value for child in children) >= config.widening_value:
            return False
        spread = 0.0
        if len(children) > 1:
            spread = float(np.linalg.norm(np.var([child.embedding for child in children], axis=0, ddof=1)))
        return spread < config.widening_variance * len(children[0].tokens)

    def widen(self, node: Node, candidate: Candidate) -> bool:
        """Add a candidate with its share of all weights for a prior; siblings keep theirs. False for a duplicate."""
        if any(child.tokens == candidate.tokens for child in node.children):
            return False
        total = sum(child.weight for child in node.children) + candidate.weight
        prior = candidate.weight / total if total > 0 else 1 / (len(node.children) + 1)
        if node is self.root:
            uniform = self.config.root_uniform
            prior = (1 - uniform) * prior + uniform / (len(node.children) + 1)
        node.children.append(_child(node, candidate, prior))
        return True

    def backup(self, leaf: Node, value: float) -> None:
        """Take a value in at `leaf` and at every ancestor up to the root, and credit similar siblings (eq. 2)."""
        low, high = VALUE_RANGE
        if not low <= value <= high:
            raise ValueError(f"The value {value} is outside [-1, 1]; map scores to that range first.")
        node = leaf
        while True:
            node.visits += 1
            node.true_visits += 1
            if node is not self.root:
                self._credit_siblings(node, value)
            node.value = _clip(node.value + (value - node.value) / node.visits)
            if node is self.root:
                return
            node = node.parent

    def _credit_siblings(self, node: Node, value: float) -> None:
        if node.embedding is None:
            return
        for sibling in node.parent.children:
            if sibling is node or sibling.embedding is None:
                continue
            cosine = cosine_similarity(node.embedding, sibling.embedding)
            if cosine < self.config.similarity_threshold:
                continue
            weight = self.config.similarity_weight * cosine
            sibling.value = _clip((sibling.value * sibling.visits + weight * value) / (sibling.visits + weight))
            sibling.visits += weight

    def forecast(
        self, leaf: Node, count: int, known: Callable[[Node], Sequence[Candidate] | None] = lambda node: None
    ) -> list[tuple[Node, bool]]:
        """Leaves that `count` iterations after one at `leaf` would select if each value were the root's mean.

        Args:
            leaf: where the iteration under way is.
            count: iterations to look ahead.
            known: the children that a leaf will get, where that is known: they are looked at too, and are no part of
                the tree.

        Returns:
            Each with whether that would be its first visit; without leaves that end the text.
        """
        before: dict[Node, tuple[float, int, float]] = {}
        grown: list[Node] = []
        value, found, node = self.root.value, [], leaf
        for _ in range(count):
            for each in reversed(node.path()):
                before.setdefault(each, (each.visits, each.true_visits, each.value))
                each.visits, each.true_visits = each.visits + 1, each.true_visits + 1
                each.value += (value - each.value) / each.visits
                if each is self.root:
                    break
            node = self.root
            while node.children or self._grow(node, known, grown):
                node = self.select(node)
            if not node.is_terminal and (node, node.true_visits == 0) not in found:
                found.append((node, node.true_visits == 0))
        for each, (visits, true_visits, mean) in before.items():
            each.visits, each.true_visits, each.value = visits, true_visits, mean
        for each in grown:
            each.children = []
        return found

    def _grow(self, node: Node, known: Callable, grown: list[Node]) -> bool:
        """Give a leaf that was visited before the children that it is known to get, for a forecast."""
        candidates = known(node) if node.true_visits > 0 and not node.is_terminal else None
        if not candidates:
            return False
        self.expand(node, candidates)
        grown.append(node)
        return True

    def most_visited(self) -> Node:
        """The root's child with most (fractional) visits, ties by value."""
        return max(self.root.children, key=lambda child: (child.visits, child.value))

    def is_settled(self) -> bool:
        """Whether the search from this root is over: a child is good and visited enough, or the budget is spent."""
        if self.root.true_visits >= self.budget:
            return True
        if not self.root.children:
            return False
        best = self.most_visited()
        return best.true_visits > self.config.min_visits and best.value > self.config.value_threshold

    def commit(self) -> Node:
        """Make the most visited child the root, keep its subtree, smooth its children's priors; returns it."""
        chosen = self.most_visited()
        chosen.is_committed = True
        self.root = chosen
        self.budget = max(self.config.iterations, chosen.true_visits + self.config.extra_iterations)
        if chosen.children:
            self._smooth()
        return chosen


def take_in_embedding(node: Node, embedding: np.ndarray) -> None:
    """Update a node's mean embedding with one more vector."""
    node.embedded += 1
    if node.embedding is None:
        node.embedding = np.array(embedding, dtype=np.float64)
    else:
        node.embedding += (embedding - node.embedding) / node.embedded


def cosine_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Cosine of two vectors, 0 if one of them is 0."""
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.dot(first, second)) / norms if norms > 0 else 0.0


def _child(parent: Node, candidate: Candidate, prior: float) -> Node:
    return Node(
        tokens=tuple(candidate.tokens),
        prior=prior,
        weight=candidate.weight,
        parent=parent,
        depth=parent.depth + 1,
        is_terminal=candidate.is_terminal,
    )


def _clip(value: float) -> float:
    return min(max(value, VALUE_RANGE[0]), VALUE_RANGE[1])
