"""The strategies beside the tree search, as generators of the same requests: they score candidates and choose.

Like the tree search they call neither model nor scorer, so the engine batches them over prompts in the same way.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Sequence
from typing import Any

from ..config import RainConfig
from ..presets import PRESETS
from .requests import Commit, Decode, Expansion, Judge, Request
from .search import PromptSearch, Steps
from .tree import Node, SearchTree


class GuidedSearch:
    """The common part of the strategies: scored candidates as children of the texts that they continue.

    Args:
        config: the settings. rules: a `StopChecker`: decides where texts end, and decodes tokens.
        key: seed of the search's own draws.

    Attributes:
        tree: all texts so far; the value of a node is the score of the text up to it.
        committed: token ids that are final. iterations: number of scored candidates. rewinds: empty.
    """

    def __init__(self, config: RainConfig, rules: Any, key: int = 0):
        self.config = config
        self.rules = rules
        self.tree = SearchTree(config)
        self.committed: list[int] = []
        self.iterations = 0
        self.rewinds: dict[Node, int] = {}
        self._random = random.Random(key)

    def run(self) -> Steps:
        """Search and commit until the text ends."""
        raise NotImplementedError

    def _grow(self, nodes: Sequence[Node], expansion: Expansion) -> Generator[Request, Any, list[Node]]:
        """Expand nodes in one request and score the texts of all their children in another; returns the children."""
        found = yield Decode(tuple((node, self._shortened(node, expansion)) for node in nodes))
        for node, candidates in zip(nodes, found, strict=True):
            self.tree.attach(node, candidates)
        children = [child for node in nodes for child in node.children]
        values = yield Judge(tuple(self.rules.completion(child.tokens_from_origin()) for child in children))
        for child, value in zip(children, values, strict=True):
            child.visits, child.true_visits, child.value = 1.0, 1, float(value)
        self.iterations += len(children)
        return children

    def _shortened(self, node: Node, expansion: Expansion) -> Expansion:
        length = min(expansion.length, self.rules.remaining(node.tokens_from_origin()))
        return Expansion(length, expansion.count, expansion.has_greedy, expansion.draws)

    def _commit(self, node: Node) -> Steps:
        node.is_committed = True
        self.tree.root = node
        self.committed.extend(node.tokens)
        yield Commit(node)


class TokenSearch(GuidedSearch):
    """ARGS and reward-augmented decoding: one token at a time, by its log probability plus the weighted score.

    Source: arXiv 2402.01694, eq. 1 and its greedy choice (`args`); arXiv 2310.09520, eq. 1, which samples (`rad`).
    Both add to logits; here these are divided by `expansion_temperature`.
    """

    def run(self) -> Steps:
        """See `GuidedSearch.run`."""
        while not self.tree.root.is_terminal:
            children = yield from self._grow([self.tree.root], Expansion(1, self.config.candidates))
            yield from self._commit(self._choose(children))
            # A criterion that depends on more than the text may hold now and not before.
            if self.rules.finish_reason(self.committed):
                return

    def _choose(self, children: Sequence[Node]) -> Node:
        given = self.config.reward_weight
        weight = PRESETS[self.config.strategy]["reward_weight"] if given is None else given
        scores = [_log(child.weight) + weight * child.value for child in children]
        best = max(scores)
        if self.config.strategy == "args":
            return children[scores.index(best)]
        (chosen,) = self._random.choices(children, [math.exp(score - best) for score in scores])
        return chosen


class ChunkSearch(GuidedSearch):
    """Chunk-wise beam search by score alone, and best-of-n, which is one beam with one chunk.

    Source: the beam search over chunks of arXiv 2405.19262; with one beam the blockwise best-of-K of arXiv 2310.17022.
    A text that has ended keeps its place among the beams until better ones take it. Tokens are committed as soon as
    all beams share them. Chunks are sampled as the token sets of RAIN are, without a greedy one.
    """

    def run(self) -> Steps:
        """See `GuidedSearch.run`."""
        # The first chunks all continue the prompt, so there are as many of them as of all beams later.
        beams, count = [self.tree.root], self.config.candidates * self.num_beams
        while unfinished := [beam for beam in beams if not beam.is_terminal]:
            length = self._chunk_length(unfinished[0].depth)
            children = yield from self._grow(unfinished, Expansion(length, count, False, tuple(range(count))))
            ended = [beam for beam in beams if beam.is_terminal]
            beams = sorted([*ended, *children], key=lambda node: -node.value)[: self.num_beams]
            count = self.config.candidates
            yield from self._commit_shared(beams)
            if self.rules.is_late():
                break
            if self.rules.finish_reason(self.committed):  # of what is final, as in `TokenSearch`
                return
        yield from self._commit_shared(beams[:1])

    @property
    def num_beams(self) -> int:
        """Texts that are kept."""
        if self.config.strategy == "best_of_n":
            return 1
        return PRESETS["beam"]["beams"] if self.config.beams is None else self.config.beams

    def _chunk_length(self, depth: int) -> int:
        if self.config.strategy == "best_of_n":
            return self.rules.remaining(())
        return self.config.edge_length(depth)

    def _commit_shared(self, beams: Sequence[Node]) -> Steps:
        """Commit what all beams have in common beyond the root."""
        paths = [beam.path() for beam in beams]
        for nodes in zip(*paths, strict=False):
            if any(node is not nodes[0] for node in nodes):
                return
            if nodes[0].depth > self.tree.root.depth:
                yield from self._commit(nodes[0])


Search = PromptSearch | GuidedSearch


def build_search(config: RainConfig, rules: Any, has_encoder: bool, key: int) -> Search:
    """The search of a prompt by the strategy of a config.

    Args:
        config, rules: see `PromptSearch`. has_encoder: whether `Embed` requests are answered.
        key: the prompt's random stream.
    """
    if config.strategy == "rain":
        return PromptSearch(config, rules, has_encoder)
    return (TokenSearch if config.strategy in ("args", "rad") else ChunkSearch)(config, rules, key)


def _log(weight: float) -> float:
    return math.log(weight) if weight > 0 else -math.inf
