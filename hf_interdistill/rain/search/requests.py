"""What a search asks of the engine. Each is answered by a value of the kind named here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .tree import Candidate, Node


@dataclass(frozen=True)
class Expansion:
    """Token sets of one length after a node; answered by a list of `Candidate`.

    One-token sets are the `count` likeliest tokens. Longer ones are the greedy one (if `has_greedy`) and one sampled
    for each number in `draws`; duplicates are dropped.
    """

    length: int
    count: int
    has_greedy: bool = True
    draws: tuple[int, ...] = ()


# The candidates of an expansion that is done before it was asked for, or `None`.
Known = Callable[[Node, Expansion], Sequence[Candidate] | None]


@dataclass(frozen=True)
class Decode:
    """Read a node, and from there expand, roll out, or both in the same passes.

    `ahead` says which rollouts (`None`) and expansions will probably be wanted next, as far as can be told from the
    expansions that are known: they ride along in these passes. Answered by `(rollout tokens or None, candidates or
    None)`.
    """

    node: Node
    is_rollout: bool = False
    expansion: Expansion | None = None
    ahead: Callable[[Known], list[tuple[Node, Expansion | None]]] | None = None


@dataclass(frozen=True)
class Judge:
    """The value of a completion, between -1 and 1."""

    completion: str


@dataclass(frozen=True)
class Embed:
    """One vector a text."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Commit:
    """A node became the root: its tokens are final. Answered by `None`."""

    node: Node


Request = Decode | Judge | Embed | Commit
