"""The search for one prompt, as a generator that yields requests and receives their answers.

It calls neither model nor scorer, so the engine can batch the requests of many searches into few forward passes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

from ..config import RainConfig
from .lookahead import predict_leaves
from .requests import Commit, Decode, Embed, Expansion, Judge, KnownCandidates, Request
from .tree import Candidate, Node, SearchTree, greedy_weight, update_embedding

Steps = Generator[Request, Any, None]


class PromptSearch:
    """RAIN for one prompt.

    Args:
        config: the constants of the search.
        rules: a `StopChecker`: decides where texts end, and decodes tokens.
        has_encoder: whether `Embed` requests are answered.

    Attributes:
        tree: the whole tree so far. committed: token ids that are final. iterations: number of iterations.
        rewinds: number of restarts at each root.
    """

    def __init__(self, config: RainConfig, rules, has_encoder: bool):
        self.config = config
        self.rules = rules
        self.has_encoder = has_encoder
        self.tree = SearchTree(config)
        self.committed: list[int] = []
        self.iterations = 0
        self.rewinds: dict[Node, int] = {}
        self._pending_texts: dict[Node, list[str]] = {}
        self._widenings: dict[Node, int] = {}

    def run(self) -> Steps:
        """Search and commit until the text ends."""
        while not self.tree.root.is_terminal:
            root = self.tree.root
            if not root.children:
                yield from self._expand(root)
            before = self.iterations
            while not self.tree.is_settled() and not (root.true_visits and self.rules.is_late()):
                yield from self._iterate()
            self.rewinds[root] = max(0, self.iterations - before - 1)
            node = self.tree.commit()
            self.committed.extend(node.tokens)
            yield Commit(node)
            # A criterion that depends on more than the text (time, for example) may hold now and not before.
            if self.rules.finish_reason(self.committed):
                return

    def _iterate(self) -> Steps:
        self.iterations += 1
        leaf = yield from self._descend()
        tokens = leaf.tokens_from_origin()
        rollout: tuple[int, ...] = ()
        is_rollout = not leaf.is_terminal and not self.rules.stops_rollout(tokens)
        if is_rollout:
            rollout, _ = yield Decode(leaf, is_rollout, speculate=partial(self._speculate, leaf))
        text = self.rules.completion([*tokens, *rollout])
        value = yield Judge(text)
        if self.has_encoder:
            yield from self._embed(leaf, rollout)
        self.tree.backup(leaf, value)

    def _speculate(self, leaf: Node, known: KnownCandidates) -> list[tuple[Node, Expansion | None]]:
        """Rollouts (`None`) and expansions that the search will request after this leaf if values stay as they are."""
        requests: list[tuple[Node, Expansion | None]] = []

        def candidates(node: Node) -> Sequence[Candidate] | None:
            return known(node, self._expansion(node))

        for node, is_first in predict_leaves(self.tree, leaf, self.config.num_speculative or 0, candidates):
            if not is_first:
                requests.append((node, self._expansion(node)))
            elif not self.rules.stops_rollout(node.tokens_from_origin()):
                requests.append((node, None))
        return requests

    def _descend(self) -> Generator[Request, Any, Node]:
        """Select a path from the root to a leaf; widen nodes on it, and expand a leaf at its second visit."""
        node = self.tree.root
        while node.children:
            if self.has_encoder and self.tree.wants_widening(node):
                yield from self._widen(node)
            node = self.tree.select(node)
            if not node.children and not node.is_terminal and node.true_visits > 0:
                yield from self._expand(node)
        return node

    def _expansion(self, node: Node) -> Expansion:
        length = min(self.config.edge_length(node.depth), self.rules.remaining(node.tokens_from_origin()))
        if length == 1:
            return Expansion(1, self.config.candidates)
        return Expansion(length, self.config.candidates, True, tuple(range(self.config.candidates - 1)))

    def _expand(self, node: Node) -> Steps:
        _, candidates = yield Decode(node, expansion=self._expansion(node), speculate=partial(self._speculate, node))
        self.tree.expand(node, candidates)

    def _widen(self, node: Node) -> Steps:
        """Request one more candidate: the next likeliest token, or one more sampled token set."""
        expansion = self._expansion(node)
        if expansion.length == 1:
            expansion = Expansion(1, len(node.children) + 1)
        else:
            number = self._widenings[node] = self._widenings.get(node, self.config.candidates - 2) + 1
            expansion = Expansion(expansion.length, 1, False, (number,))
        _, candidates = yield Decode(node, expansion=expansion)
        for candidate in candidates:
            if self.tree.widen(node, candidate):
                return

    def _embed(self, leaf: Node, rollout: Sequence[int]) -> Steps:
        """Embed the texts of this iteration in one request; a text stays pending until a sibling has been visited."""
        tail: list[int] = list(rollout)
        ready: list[Node] = []
        pending, path = self._pending_texts, leaf.path()
        for node, parent in zip(path[:0:-1], path[-2::-1], strict=True):
            if node is self.tree.root:
                break
            tail = [*node.tokens, *tail]
            pending.setdefault(node, []).append(self.rules.fragment(parent.tokens_from_origin(), tail))
            visited = [sibling for sibling in parent.children if sibling.true_visits > 0 and sibling is not node]
            if visited or len(parent.children) == 1:
                ready.extend(each for each in (node, *visited) if pending.get(each))
        texts = [(each, text) for each in ready for text in pending.pop(each)]
        if texts:
            vectors = yield Embed(tuple(text for _, text in texts))
            for (each, _), vector in zip(texts, vectors, strict=True):
                update_embedding(each, vector)


def weight_candidates(greedy: tuple[Candidate, ...], sampled: Sequence[Candidate]) -> list[Candidate]:
    """Distinct candidates. The greedy one comes first, with the weight that the released code gives it."""
    seen = {candidate.tokens for candidate in greedy}
    distinct: list[Candidate] = []
    for candidate in sampled:
        if candidate.tokens not in seen:
            seen.add(candidate.tokens)
            distinct.append(candidate)
    others = [candidate.weight for candidate in distinct]
    first = [Candidate(each.tokens, greedy_weight(each.weight, others), each.is_terminal) for each in greedy]
    return [*first, *distinct]
