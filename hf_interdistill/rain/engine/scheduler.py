"""From decode requests to forward passes: expansions and rollouts of all prompts advance together, a token a pass.

A work is one rollout or one expansion from a node. What comes out of it depends on the node and the seed alone, so it
may be done before it is asked for: works that the search will probably want ride along in passes that are made anyway.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch

from ..config import RainConfig
from ..kv_cache.copy_cache import CopyingCache
from ..kv_cache.tree_cache import Handle, TreeCache
from ..search.requests import Decode, Expansion
from ..search.search import weigh
from ..search.tree import Candidate, Node
from .model_runner import Ask, Place, RowState, Told, choose
from .sampler import stream_key

Asking = Generator[list[Ask], list[Told], object]
Key = tuple[tuple[int, ...], Expansion | None]  # generated tokens, and what is to follow them (`None`: a rollout)


class Work:
    """A rollout (its result: tokens) or an expansion (candidates).

    Args:
        task: of the prompt. key: what it is.

    Attributes:
        asks: what it wants to read next; nothing while another work reads the node. is_done, result: the end.
    """

    def __init__(self, task: DecodeTask, key: Key):
        self.generated, self.expansion = key
        self.state, self.config, self.cache = task.state, task.config, task.cache
        self.place: Place = self.state.places[self.generated]
        self.asks: list[Ask] = []
        self.is_done = False
        self.result: object = None
        self._steps = self._run()
        self.advance(None)

    def advance(self, told: list[Told] | None) -> None:
        """Take answers to `asks`, and come to the next."""
        try:
            self.asks = self._steps.send(told)
        except StopIteration as stop:
            self.asks, self.is_done, self.result = [], True, stop.value

    def close(self) -> None:
        """Leave it."""
        self._steps.close()

    def _run(self) -> Asking:
        yield from self._read_node()
        return (yield from (self._roll_out() if self.expansion is None else self._expand(self.expansion)))

    def _read_node(self) -> Asking:
        place = self.place
        while place.told is None:
            if place.is_asked:
                yield []
                continue
            place.is_asked = True
            try:
                (place.told,) = yield [self._ask(place.parent, place.pending, (), is_drawn=True)]
            finally:
                place.is_asked = False

    def _ask(self, parent: Handle | None, tokens, after: tuple[int, ...], is_drawn: bool = False, choices=()) -> Ask:
        key = stream_key(self.state.key, "rollout", self.generated, len(after)) if is_drawn else None
        prefix = (*self.state.rules.prompt_ids, *self.generated, *after)
        return Ask(self.state.row, parent, tuple(tokens), prefix, key, choices)

    def _roll_out(self) -> Asking:
        """Sample on to a stop character, the end of the text or the longest rollout."""
        rules, tokens, told = self.state.rules, (), self.place.told
        longest = self.config.rollout_max_tokens or rules.remaining(self.generated)
        while True:
            tokens = (*tokens, told.drawn)
            text = (*self.generated, *tokens)
            if len(tokens) >= longest or rules.stops_rollout(tokens) or rules.finish_reason(text):
                break
            (told,) = yield [self._ask(told.handle, tokens[-1:], tokens, is_drawn=True)]
        if told is not self.place.told:
            self.cache.drop(told.handle, keep=self.place.told.handle)
        return tokens

    def _expand(self, expansion: Expansion) -> Asking:
        if expansion.length > 1:
            return (yield from self._sample(expansion))
        scores = self.place.told.scores / self.config.expansion_temperature
        weights = torch.exp(scores - scores[0])[: expansion.count].tolist()
        tokens = self.place.told.ids[: expansion.count].tolist()
        candidates = [self._candidate((token,), weight) for token, weight in zip(tokens, weights, strict=True)]
        self._hang(candidates, {(): self.place.told})
        return candidates

    def _candidate(self, tokens: tuple[int, ...], weight: float) -> Candidate:
        is_terminal = self.state.rules.finish_reason((*self.generated, *tokens)) is not None
        return Candidate(tokens, weight, is_terminal)

    def _sample(self, expansion: Expansion) -> Asking:
        """The greedy token set and the sampled ones, in step; equal beginnings are read once."""
        rules, told = self.state.rules, self.place.told
        branches: list[tuple[int, ...]] = [()] * (expansion.has_greedy + len(expansion.draws))
        logs = [0.0] * len(branches)
        live, read = list(range(len(branches))), {(): told}
        keys = self._choice_keys(live, expansion, 0)
        chosen = choose(told.scores.expand(len(live), -1), told.ids.expand(len(live), -1), keys, self.config)
        for step in range(1, expansion.length + 1):
            for i, (token, log) in zip(live, chosen, strict=True):
                branches[i], logs[i] = (*branches[i], token), logs[i] + log
            wanted: dict[tuple[int, ...], list[int]] = {}
            for i in live:
                if rules.finish_reason((*self.generated, *branches[i])) is None:
                    wanted.setdefault(branches[i], []).append(i)
            if step == expansion.length or not wanted:
                break
            keys = {each: self._choice_keys(members, expansion, step) for each, members in wanted.items()}
            told = yield [self._ask(read[each[:-1]].handle, each[-1:], each, choices=keys[each]) for each in wanted]
            read.update(zip(wanted, told, strict=True))
            chosen = [token for each in told for token in each.chosen]
            live = [i for members in wanted.values() for i in members]
        weights = torch.tensor(logs, dtype=torch.float64).exp().tolist()
        drawn = [self._candidate(tokens, weight) for tokens, weight in zip(branches, weights, strict=True)]
        greedy = int(expansion.has_greedy)
        candidates = weigh(tuple(drawn[:greedy]), drawn[greedy:])
        self._hang(candidates, read)
        return candidates

    def _choice_keys(self, branches: Sequence[int], expansion: Expansion, step: int) -> list[int | None]:
        """Streams of the tokens that branches get at a step; `None` for the greedy one."""
        numbers = [i - expansion.has_greedy for i in branches]
        draws = [None if number < 0 else expansion.draws[number] for number in numbers]
        return [
            None if draw is None else stream_key(self.state.key, "expansion", self.generated, step, draw)
            for draw in draws
        ]

    def _hang(self, candidates: Sequence[Candidate], read: dict[tuple[int, ...], Told]) -> None:
        """Remember where each candidate hangs, for the node that may be made from it."""
        for candidate in candidates:
            place = Place(read[candidate.tokens[:-1]].handle, candidate.tokens[-1:])
            self.state.places.setdefault((*self.generated, *candidate.tokens), place)


class DecodeTask:
    """Answers one `Decode` request, and advances what was begun ahead.

    Args:
        state: the prompt. request: what is asked. config: the constants. cache: where keys and values lie.
    """

    def __init__(self, state: RowState, request: Decode, config: RainConfig, cache: TreeCache | CopyingCache):
        self.state = state
        self.request = request
        self.config = config
        self.cache = cache

    def run(self) -> Generator[list[Ask], list[Told], tuple]:
        """Yields asks; returns `(rollout or None, candidates or None)`."""
        request, works = self.request, self.state.works
        keys = [self._key(request.node, None)] if request.is_rollout else []
        keys += [self._key(request.node, request.expansion)] if request.expansion else []
        wanted = [self._work(key) for key in keys]
        if not all(work.is_done for work in wanted):
            self._begin_ahead(wanted)
        while not all(work.is_done for work in wanted):
            asking = [work for work in works.values() if work.asks]
            waiting = [work for work in works.values() if not work.is_done and not work.asks]
            told = yield [ask for work in asking for ask in work.asks]
            start = 0
            for work in asking:
                stop = start + len(work.asks)
                work.advance(told[start:stop])
                start = stop
            for work in waiting:
                work.advance([])
            if any(work.is_done and work not in wanted for work in asking):
                self._begin_ahead(wanted)
        results = [works.pop(key).result for key in keys]
        return results[0] if request.is_rollout else None, results[-1] if request.expansion else None

    @staticmethod
    def _key(node: Node, expansion: Expansion | None) -> Key:
        return node.tokens_from_origin(), expansion

    def _work(self, key: Key) -> Work:
        """The work with this key, begun if it is not there."""
        if key not in self.state.works:
            self.state.works[key] = Work(self, key)
        return self.state.works[key]

    def _known(self, node: Node, expansion: Expansion) -> list[Candidate] | None:
        """What an expansion gave that was read ahead."""
        work = self.state.works.get(self._key(node, expansion))
        return work.result if work is not None and work.is_done else None

    def _begin_ahead(self, wanted: list[Work]) -> None:
        """Begin what will probably be wanted next, as far as there is room."""
        if self.request.ahead is None or not self.cache.mixes_lengths:
            return
        riding = sum(not work.is_done and work not in wanted for work in self.state.works.values())
        if riding >= self.config.num_speculative:
            return
        for node, expansion in self.request.ahead(self._known):
            key = self._key(node, expansion)
            if key not in self.state.works and riding < self.config.num_speculative:
                riding += not self._work(key).is_done
