"""Requests that a search yields. The engine answers each one; every class says what the answer is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .tree import Candidate, Node


@dataclass(frozen=True)
class Expansion:
    """Token sets of one length to sample after a node. The answer is a list of `Candidate`.

    One-token sets are the `count` likeliest tokens. Longer sets are the greedy one (if `has_greedy`) and one sampled
    set for each number in `draws`; duplicates are dropped.
    """

    length: int
    count: int
    has_greedy: bool = True
    draws: tuple[int, ...] = ()


# The candidates of an expansion that has been computed speculatively, or `None`.
KnownCandidates = Callable[[Node, Expansion], Sequence[Candidate] | None]


@dataclass(frozen=True)
class Decode:
    """Run the model on a node, then expand it, roll out from it, or both.

    `speculate` returns the rollouts (`None`) and expansions that the search will probably request next, given the
    candidates that are known. They share the forward passes of this request. The answer is `(rollout tokens or None,
    candidates or None)`.
    """

    node: Node
    is_rollout: bool = False
    expansion: Expansion | None = None
    speculate: Callable[[KnownCandidates], list[tuple[Node, Expansion | None]]] | None = None


@dataclass(frozen=True)
class Judge:
    """Score a completion. The answer is its value, between -1 and 1."""

    completion: str


@dataclass(frozen=True)
class Embed:
    """Embed texts. The answer is one vector per text."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Commit:
    """A node has become the root: its tokens are final. The answer is `None`."""

    node: Node


Request = Decode | Judge | Embed | Commit
