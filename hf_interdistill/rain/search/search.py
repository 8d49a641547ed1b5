"""The search for one prompt, as a generator: it yields requests and is sent their answers.

It calls neither model nor scorer, so the engine can gather the requests of many searches into few forward passes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial

from ..config import RainConfig
from .requests import Commit, Decode, Embed, Expansion, Judge, Known, Request
from .tree import Candidate, Node, SearchTree, greedy_weight, take_in_embedding

Steps = Generator[Request, object, None]


class PromptSearch:
    """RAIN for one prompt.

    Args:
        config: the constants.
        rules: where texts end and what they say (`StopChecker`).
        has_encoder: whether embeddings can be had.

    Attributes:
        tree: the whole tree so far. committed: token ids that are final. iterations, rewinds: counts; a rewind is a
        restart at the root.
    """

    def __init__(self, config: RainConfig, rules, has_encoder: bool):
        self.config = config
        self.rules = rules
        self.has_encoder = has_encoder
        self.tree = SearchTree(config)
        self.committed: list[int] = []
        self.iterations = 0
        self.rewinds: dict[Node, int] = {}
        self._unread: dict[Node, list[str]] = {}
        self._widenings: dict[Node, int] = {}

    def run(self) -> Steps:
        """Search and commit until the text ends."""
        while not self.tree.root.is_terminal:
            root = self.tree.root
            if not root.children:
                yield from self._expand(root)
            before = self.iterations
            while not self.tree.is_settled():
                yield from self._iterate()
            self.rewinds[root] = max(0, self.iterations - before - 1)
            node = self.tree.commit()
            self.committed.extend(node.tokens)
            yield Commit(node)
            # A criterion that looks at more than the text (a clock, a switch) may say now what it did not say before.
            if self.rules.finish_reason(self.committed):
                return

    def _iterate(self) -> Steps:
        self.iterations += 1
        leaf = yield from self._descend()
        tokens = leaf.tokens_from_origin()
        rollout: tuple[int, ...] = ()
        is_rollout = not leaf.is_terminal and not self.rules.stops_rollout(tokens)
        if is_rollout:
            rollout, _ = yield Decode(leaf, is_rollout, ahead=partial(self._ahead, leaf))
        text = self.rules.completion([*tokens, *rollout])
        value = yield Judge(text)
        if self.has_encoder:
            yield from self._embed(leaf, rollout)
        self.tree.backup(leaf, value)

    def _ahead(self, leaf: Node, known: Known) -> list[tuple[Node, Expansion | None]]:
        """What will be asked for after this leaf, if verdicts go on as they are."""
        wishes: list[tuple[Node, Expansion | None]] = []
        visits = self.tree.forecast(leaf, self.config.num_speculative, lambda node: known(node, self._expansion(node)))
        for node, is_first in visits:
            if is_first and not self.rules.stops_rollout(node.tokens_from_origin()):
                wishes.append((node, None))
            if not is_first:
                wishes.append((node, self._expansion(node)))
        return wishes

    def _descend(self) -> Generator[Request, object, Node]:
        """From the root to a leaf, widening and (on the second visit) expanding on the way."""
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
        _, candidates = yield Decode(node, expansion=self._expansion(node), ahead=partial(self._ahead, node))
        self.tree.expand(node, candidates)

    def _widen(self, node: Node) -> Steps:
        """Ask for one more candidate: the next likeliest token, or one more sampled token set."""
        plan = self._expansion(node)
        if plan.length == 1:
            plan = Expansion(1, len(node.children) + 1)
        else:
            number = self._widenings[node] = self._widenings.get(node, self.config.candidates - 2) + 1
            plan = Expansion(plan.length, 1, False, (number,))
        _, candidates = yield Decode(node, expansion=plan)
        for candidate in candidates:
            if self.tree.widen(node, candidate):
                return

    def _embed(self, leaf: Node, rollout: Sequence[int]) -> Steps:
        """Take the texts of this iteration in, in one call; a text waits while no sibling is there to compare with."""
        tail: list[int] = list(rollout)
        wanted: list[Node] = []
        node = leaf
        while node is not self.tree.root:
            tail = [*node.tokens, *tail]
            self._unread.setdefault(node, []).append(self.rules.fragment(node.parent.tokens_from_origin(), tail))
            visited = [sibling for sibling in node.parent.children if sibling.true_visits > 0 and sibling is not node]
            if visited or len(node.parent.children) == 1:
                wanted.extend(each for each in (node, *visited) if self._unread.get(each))
            node = node.parent
        texts = [(each, text) for each in wanted for text in self._unread.pop(each)]
        if texts:
            vectors = yield Embed(tuple(text for _, text in texts))
            for (each, _), vector in zip(texts, vectors, strict=True):
                take_in_embedding(each, vector)


def weigh(greedy: tuple[Candidate, ...], sampled: Sequence[Candidate]) -> list[Candidate]:
    """Distinct candidates, the greedy one first with the weight that the released code gives it."""
    seen = {candidate.tokens for candidate in greedy}
    distinct: list[Candidate] = []
    for candidate in sampled:
        if candidate.tokens not in seen:
            seen.add(candidate.tokens)
            distinct.append(candidate)
    others = [candidate.weight for candidate in distinct]
    first = [Candidate(each.tokens, greedy_weight(each.weight, others), each.is_terminal) for each in greedy]
    return [*first, *distinct]
