"""The search for one prompt, as a generator that yields requests and receives their answers.

It calls neither model nor scorer, so the engine can batch the requests of many searches into few forward passes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..config import RainConfig
from .lookahead import predict_leaves, select_leaves
from .requests import Commit, Decode, DecodeTask, Embed, Expansion, Judge, KnownCandidates, Request
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
        self._vectors: dict[str, np.ndarray] = {}  # of texts since the last commit; about half of them come again
        self._widenings: dict[Node, int] = {}

    def run(self) -> Steps:
        """Search and commit until the text ends."""
        while not self.tree.root.is_terminal:
            root = self.tree.root
            if not root.children:
                yield from self._decode([root], [root], [])
            before = self.iterations
            while not self.tree.is_settled() and not (root.true_visits and self.rules.is_late()):
                yield from self._step(min(self.config.leaves_per_step, self.tree.budget - root.true_visits))
            self.rewinds[root] = max(0, self.iterations - before - 1)
            node = self.tree.commit()
            self.committed.extend(node.tokens)
            self._vectors.clear()
            yield Commit(node)
            # A criterion that depends on more than the text (time, for example) may hold now and not before.
            if self.rules.finish_reason(self.committed):
                return

    def _step(self, count: int) -> Steps:
        """Run up to `count` iterations together: their rollouts, expansions and scores share requests."""
        paths = yield from self._select(count)
        self.iterations += len(paths)
        grown = [leaf for leaf in paths if leaf.true_visits > 0 and not leaf.is_terminal]
        fresh = [leaf for leaf in paths if leaf not in grown]
        rollouts = yield from self._decode(paths, grown, fresh)
        leaves = [self.tree.select(leaf) if leaf in grown else leaf for leaf in paths]
        rollouts |= yield from self._decode(leaves, [], [leaf for leaf in leaves if leaf not in rollouts])
        texts = [self.rules.completion([*leaf.tokens_from_origin(), *rollouts[leaf]]) for leaf in leaves]
        values = yield Judge(tuple(texts))
        if self.has_encoder:
            yield from self._embed({leaf: rollouts[leaf] for leaf in leaves})
        for leaf, value in zip(leaves, values, strict=True):
            self.tree.backup(leaf, value)

    def _select(self, count: int) -> Generator[Request, Any, list[Node]]:
        """Leaves of a step. Nodes on their paths are widened first, from the root down, each at most once a step."""
        tried: set[Node] = set()
        while True:
            leaves = select_leaves(self.tree, count)
            if not self.has_encoder:
                return leaves
            narrow = {node: None for leaf in leaves if (node := self._narrow(leaf, tried)) is not None}
            if not narrow:
                return leaves
            tried |= set(narrow)
            yield from self._widen(list(narrow))

    def _narrow(self, leaf: Node, tried: set[Node]) -> Node | None:
        """The first node from the root to a leaf that wants to be widened and was not tried yet."""
        path = leaf.path()
        below_root = path[path.index(self.tree.root) : -1]
        return next((node for node in below_root if node not in tried and self.tree.wants_widening(node)), None)

    def _decode(self, leaves: Sequence[Node], grown: Sequence[Node], fresh: Sequence[Node]):
        """Expand nodes and roll out from others in one request; returns the rollout of each of the latter.

        Args:
            leaves: of the whole step. grown: to expand. fresh: to roll out from, unless their text is over.
        """
        rollouts: dict[Node, tuple[int, ...]] = dict.fromkeys(fresh, ())
        open_ended = [
            leaf for leaf in fresh if not leaf.is_terminal and not self.rules.stops_rollout(leaf.tokens_from_origin())
        ]
        tasks: list[DecodeTask] = [(leaf, self._expansion(leaf)) for leaf in grown]
        tasks += [(leaf, None) for leaf in open_ended]
        if tasks:
            results = yield Decode(tuple(tasks), partial(self._speculate, leaves))
            for (leaf, expansion), result in zip(tasks, results, strict=True):
                if expansion is None:
                    rollouts[leaf] = result
                else:
                    self.tree.expand(leaf, result)
        return rollouts

    def _speculate(self, leaves: Sequence[Node], known: KnownCandidates) -> list[DecodeTask]:
        """What the search will request after these leaves if values stay as they are."""
        tasks: list[DecodeTask] = []

        def candidates(node: Node) -> Sequence[Candidate] | None:
            return known(node, self._expansion(node))

        for node, is_first in predict_leaves(self.tree, leaves, self.config.num_speculative or 0, candidates):
            if not is_first:
                tasks.append((node, self._expansion(node)))
            elif not self.rules.stops_rollout(node.tokens_from_origin()):
                tasks.append((node, None))
        return tasks

    def _expansion(self, node: Node) -> Expansion:
        length = min(self.config.edge_length(node.depth), self.rules.remaining(node.tokens_from_origin()))
        if length == 1:
            return Expansion(1, self.config.candidates)
        return Expansion(length, self.config.candidates, True, tuple(range(self.config.candidates - 1)))

    def _widen(self, nodes: Sequence[Node]) -> Steps:
        """Request one more candidate for each: the next likeliest token, or one more sampled token set."""
        tasks: list[DecodeTask] = []
        for node in nodes:
            expansion = self._expansion(node)
            if expansion.length == 1:
                expansion = Expansion(1, len(node.children) + 1)
            else:
                number = self._widenings[node] = self._widenings.get(node, self.config.candidates - 2) + 1
                expansion = Expansion(expansion.length, 1, False, (number,))
            tasks.append((node, expansion))
        results = yield Decode(tuple(tasks))
        for node, candidates in zip(nodes, results, strict=True):
            next((each for each in candidates if self.tree.widen(node, each)), None)

    def _embed(self, rollouts: dict[Node, tuple[int, ...]]) -> Steps:
        """Embed the texts of a step in one request; a text stays pending until a sibling has been visited.

        Args:
            rollouts: of the leaves of the step.
        """
        pending, entered = self._pending_texts, {node for leaf in rollouts for node in leaf.path()}
        ready: dict[Node, None] = {}
        for leaf, rollout in rollouts.items():
            tail, path = list(rollout), leaf.path()
            for node, parent in zip(path[:0:-1], path[-2::-1], strict=True):
                if node is self.tree.root:
                    break
                tail = [*node.tokens, *tail]
                pending.setdefault(node, []).append(self.rules.fragment(parent.tokens_from_origin(), tail))
                siblings = [each for each in parent.children if each is not node]
                visited = [each for each in siblings if each.true_visits > 0 or each in entered]
                if visited or not siblings:
                    ready.update(dict.fromkeys((node, *visited)))
        texts = [(each, text) for each in ready for text in pending.pop(each, ())]
        missing = tuple(dict.fromkeys(text for _, text in texts if text not in self._vectors))
        if missing:
            vectors = yield Embed(missing)
            self._vectors.update(zip(missing, vectors, strict=True))
        for each, text in texts:
            update_embedding(each, self._vectors[text])


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
