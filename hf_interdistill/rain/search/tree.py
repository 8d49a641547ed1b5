"""The search tree: selection, backup, widening and commit.

This module knows neither models nor tokenizers: a token set is a tuple of integers, an embedding a NumPy vector.

Source: arXiv 2309.07124, eq. 1 (selection) and eq. 2 (credit of similar siblings). The order of operations is that of
the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..config import RainConfig

VALUE_RANGE = (-1.0, 1.0)
_EPSILON = 1e-5


@dataclass(eq=False)
class Node:
    """A token set and its search statistics.

    Args:
        tokens: token ids of the edge from the parent; empty at the origin.
        prior: probability of the edge among its siblings.
        weight: the prior before normalization.
        depth: number of edges from the origin.
        is_terminal: whether the text ends with this node.
        visits: `n` of eq. 1; fractional, because similar siblings share values.
        true_visits: visits through this node.
        value: mean value, between -1 and 1.
        embedding: mean embedding of the texts from this node to the end of each rollout.
        embedded: number of texts in that mean.
        is_committed: whether the tokens are part of the answer.
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
        """Nodes from the origin to this one, including both."""
        nodes = [self]
        while nodes[-1].parent is not None:
            nodes.append(nodes[-1].parent)
        return nodes[::-1]

    def tokens_from_origin(self) -> tuple[int, ...]:
        """All token ids from the origin to the end of this node."""
        return tuple(token for node in self.path() for token in node.tokens)

    def subtree(self) -> Iterator[Node]:
        """This node and its descendants, parents first."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))


@dataclass(frozen=True)
class Candidate:
    """A token set that may become a child: token ids, unnormalized weight, and whether it ends the text."""

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
        config: the constants of the search.

    Relations: `search.py` decides the order of operations. A commit keeps all nodes, because `views.py` draws them.
    """

    def __init__(self, config: RainConfig):
        self.config = config
        self.origin = Node()
        self.root = self.origin
        self.budget = config.iterations
        self.rewinds = 0

    def release(self) -> None:
        """Unlink all nodes: references between parents and children would keep them until garbage collection."""
        for node in list(self.origin.subtree()):
            node.parent, node.children = None, []

    def select(self, node: Node) -> Node:
        """The child of `node` with the largest score of eq. 1; the first one on a tie."""
        return max(node.children, key=self.selection_score)

    def selection_score(self, node: Node) -> float:
        """`(q - q_min) / (q_max - q_min + 1e-5) + c p sqrt(n_parent) / (1 + n)`, the first term 0 if unvisited."""
        low, high = VALUE_RANGE
        exploitation = (node.value - low) / (high - low + _EPSILON) if node.visits > 0 else 0.0
        parent_visits = node.parent.visits if node.parent is not None else 0.0
        exploration = self.config.exploration * node.prior * math.sqrt(parent_visits) / (1 + node.visits)
        return exploitation + exploration

    def expand(self, node: Node, candidates: Sequence[Candidate]) -> None:
        """Add children to a leaf; their priors are the normalized weights, smoothed at the root."""
        self.attach(node, candidates)
        if node is self.root:
            self._smooth()

    @staticmethod
    def attach(node: Node, candidates: Sequence[Candidate]) -> None:
        """Add children to a leaf; their priors are the normalized weights."""
        if node.children or node.is_terminal:
            raise ValueError(
                "Only a leaf that does not end the text can be expanded; this node has children or ends the text."
            )
        if not candidates:
            raise ValueError("An expansion needs at least one candidate, but got none.")
        total = sum(candidate.weight for candidate in candidates)
        for candidate in candidates:
            share = candidate.weight / total if total > 0 else 1 / len(candidates)
            node.children.append(_child(node, candidate, share))

    def _smooth(self) -> None:
        """Apply `p <- (1 - u) p + u / k` to the root's children, normalized."""
        children, uniform = self.root.children, self.config.root_uniform
        smoothed = [(1 - uniform) * child.prior + uniform / len(children) for child in children]
        for child, prior in zip(children, smoothed, strict=True):
            child.prior = prior / sum(smoothed)

    def wants_widening(self, node: Node) -> bool:
        """Whether an inner node on the selected path gets one more candidate.

        All children must be visited and similar: the norm of the variance of their embeddings is below the threshold
        times the tokens of an edge. The best child must have a low value. A lone child has variance 0. A node without
        embeddings is never widened.
        """
        children, config = node.children, self.config
        if not children or len(children) >= config.max_children:
            return False
        embeddings = [child.embedding for child in children if child.embedding is not None]
        if len(embeddings) < len(children):
            return False
        if max(child.value for child in children) >= config.widening_value:
            return False
        spread = 0.0
        if len(children) > 1:
            spread = float(np.linalg.norm(np.var(embeddings, axis=0, ddof=1)))
        return spread < config.widening_variance * len(children[0].tokens)

    def widen(self, node: Node, candidate: Candidate) -> bool:
        """Add a candidate; its prior is its share of all weights, and its siblings keep theirs.

        Returns:
            False if the candidate is a duplicate and was not added.
        """
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
        """Update `leaf` and its ancestors up to the root with a value, and credit similar siblings (eq. 2)."""
        low, high = VALUE_RANGE
        if not low <= value <= high:
            raise ValueError(f"The value {value} is outside [-1, 1]; map scores to that range first.")
        for node in reversed(leaf.path()):
            node.visits += 1
            node.true_visits += 1
            if node is not self.root:
                self._credit_siblings(node, value)
            node.value = _clip(node.value + (value - node.value) / node.visits)
            if node is self.root:
                return

    def _credit_siblings(self, node: Node, value: float) -> None:
        if node.embedding is None or node.parent is None:
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

    def most_visited(self) -> Node:
        """The root's child with the most (fractional) visits; the value breaks ties."""
        return max(self.root.children, key=lambda child: (child.visits, child.value))

    def is_settled(self) -> bool:
        """Whether the search from this root is over.

        It is over when the most visited child has enough visits and a high value, or when the budget is spent.
        """
        if self.root.true_visits >= self.budget:
            return True
        if not self.root.children:
            return False
        best = self.most_visited()
        return best.true_visits > self.config.min_visits and best.value > self.config.value_threshold

    def commit(self) -> Node:
        """Make the most visited child the root and smooth the priors of its children; returns the new root."""
        chosen = self.most_visited()
        chosen.is_committed = True
        self.root = chosen
        self.budget = max(self.config.iterations, chosen.true_visits + self.config.extra_iterations)
        if chosen.children:
            self._smooth()
        return chosen


def update_embedding(node: Node, embedding: np.ndarray) -> None:
    """Add one vector to the mean embedding of a node."""
    node.embedded += 1
    if node.embedding is None:
        node.embedding = np.array(embedding, dtype=np.float64)
    else:
        node.embedding += (embedding - node.embedding) / node.embedded


def cosine_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Cosine of two vectors; 0 if either of them is 0."""
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
