"""Requests that a search yields. The engine answers each one; every class says what the answer is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .tree import Candidate, Node


@dataclass(frozen=True)
class Expansion:
    """Token sets of one length to sample after a node. The answer is a list of `Candidate`.

    One-token sets are the `count` likeliest tokens, unless there are `draws`. Other sets are the greedy one (if
    `has_greedy`) and one sampled set for each number in `draws`; duplicates are dropped.
    """

    length: int
    count: int
    has_greedy: bool = True
    draws: tuple[int, ...] = ()


# The candidates of an expansion that has been computed speculatively, or `None`.
KnownCandidates = Callable[[Node, Expansion], Sequence[Candidate] | None]


# What to decode from a node: an expansion, or a rollout (`None`).
DecodeTask = tuple[Node, Expansion | None]


@dataclass(frozen=True)
class Decode:
    """Roll out from nodes and expand nodes, in the same forward passes. All tasks differ.

    `speculate` returns the tasks that the search will probably request next, given the candidates that are known.
    They share the forward passes of this request. The answer is, for each task, the tokens of the rollout or the
    candidates of the expansion.
    """

    tasks: tuple[DecodeTask, ...]
    speculate: Callable[[KnownCandidates], list[DecodeTask]] | None = None


@dataclass(frozen=True)
class Judge:
    """Score completions. The answer is one value per completion, between -1 and 1."""

    completions: tuple[str, ...]


@dataclass(frozen=True)
class Embed:
    """Embed texts. The answer is one vector per text."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Commit:
    """A node has become the root: its tokens are final. The answer is `None`."""

    node: Node


Request = Decode | Judge | Embed | Commit
