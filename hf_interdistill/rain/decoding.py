"""From decode requests to forward passes: expansions and rollouts of all prompts advance together, a token a pass."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import torch

from .cache import Feed, Handle, TreeCache
from .config import RainConfig
from .copying import CopyingCache
from .requests import Decode, Expansion
from .rules import TextRules
from .sampling import draw, stream_key
from .search import weigh
from .tree import Candidate, Node


@dataclass
class Ask:
    """Tokens to read after `parent`; `prefix` is all of the text with them (prompt first), for the processors."""

    row: int
    parent: Handle | None
    tokens: Sequence[int]
    prefix: tuple[int, ...]
    draw_key: int | None = None


@dataclass
class Told:
    """The likeliest next tokens, best first (`ids`, `scores`: float64 log probabilities up to a constant), and one
    drawn from all of them."""

    handle: Handle
    ids: torch.Tensor
    scores: torch.Tensor
    drawn: int | None


@dataclass
class Place:
    """What is known of a node: where it hangs in the cache, tokens still unread, and the next tokens once read."""

    parent: Handle | None
    pending: tuple[int, ...]
    told: Told | None = None

    @property
    def handle(self) -> Handle | None:
        """The deepest place in the cache that this node needs."""
        return self.told.handle if self.told else self.parent


@dataclass
class RowState:
    """One prompt in flight: its row, rules, random streams, and the places of its nodes."""

    row: int
    rules: TextRules
    key: int
    places: dict[Node, Place] = field(default_factory=dict)
    hung: dict[Node, dict[tuple[int, ...], Place]] = field(default_factory=dict)

    def open(self, origin: Node) -> None:
        """Start at the prompt."""
        self.places[origin] = Place(None, self.rules.prompt_ids)

    def place_of(self, node: Node) -> Place:
        """A node's place; at first that of the candidate it was made from."""
        if node not in self.places:
            self.places[node] = self.hung[node.parent][node.tokens]
        return self.places[node]

    def prune(self, cache: TreeCache | CopyingCache, root: Node) -> None:
        """Keep the places at and below the root, and free the rest of the row."""
        nodes = list(root.subtree())
        self.place_of(root)
        self.places = {node: self.places[node] for node in nodes if node in self.places}
        self.hung = {node: self.hung[node] for node in nodes if node in self.hung}
        places = [*self.places.values(), *(place for hung in self.hung.values() for place in hung.values())]
        cache.keep_only(self.row, [place.handle for place in places if place.handle is not None])


class Reader:
    """Reads asks in one forward pass and reduces the logits to what the tasks need.

    Args:
        cache: where keys and values lie.
        config: for the number of tokens to remember.
    """

    def __init__(self, cache: TreeCache | CopyingCache, config: RainConfig):
        self.cache = cache
        self.width = max(config.max_children, config.sample_top_k, config.candidates)

    def read(self, asks: Sequence[Ask], states: dict[int, RowState]) -> list[Told]:
        """Answers in the order of the asks."""
        reads = self.cache.read([Feed(ask.row, ask.parent, ask.tokens) for ask in asks])
        scores = self._process(torch.stack([read.logits for read in reads]), asks, states)
        values, ids = _likeliest(scores, min(self.width, scores.shape[1]))
        drawing = [i for i, ask in enumerate(asks) if ask.draw_key is not None]
        drawn: dict[int, int] = {}
        if drawing:
            columns = draw(scores[drawing], [asks[i].draw_key for i in drawing]).tolist()
            drawn = dict(zip(drawing, columns, strict=True))
        told = []
        for i, read in enumerate(reads):
            finite = values[i].isfinite()
            told.append(Told(read.handle, ids[i][finite], values[i][finite], drawn.get(i)))
        return told

    @staticmethod
    def _process(scores: torch.Tensor, asks: Sequence[Ask], states: dict[int, RowState]) -> torch.Tensor:
        """Apply each prompt's logits processors to its scores, texts of equal length together."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, ask in enumerate(asks):
            if states[ask.row].rules.stop.processors:
                groups.setdefault((ask.row, len(ask.prefix)), []).append(i)
        for (row, _), members in groups.items():
            ids = torch.tensor([asks[i].prefix for i in members], device=scores.device)
            processed = scores[members]
            for processor in states[row].rules.stop.processors:
                processed = processor(ids, processed)
            scores[members] = processed
        return scores


def _likeliest(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest scores and their ids `(rows, count)` on the CPU, float64; of equal scores the smaller id first."""
    top = scores.topk(count, dim=-1)
    ids, order = top.indices.cpu().sort(dim=-1)
    values, order = top.values.double().cpu().gather(1, order).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


Asking = Generator[list[Ask], list[Told], object]


def together(parts: Sequence[Asking]) -> Generator[list[Ask], list[Told], list]:
    """Run tasks side by side: their asks in one list, each sent its own answers; returns their results in order."""
    results: list = [None] * len(parts)
    asks: dict[int, list[Ask]] = {}

    def advance(number: int, answers) -> None:
        try:
            asks[number] = parts[number].send(answers)
        except StopIteration as stop:
            results[number] = stop.value
            asks.pop(number, None)

    for number in range(len(parts)):
        advance(number, None)
    while asks:
        order = sorted(asks)
        told = yield [ask for number in order for ask in asks[number]]
        start = 0
        for number in order:
            stop = start + len(asks[number])
            advance(number, told[start:stop])
            start = stop
    return results


class DecodeTask:
    """Answers one `Decode` request.

    Args:
        state: the prompt. request: what is asked. config: the constants. cache: to free what a rollout read.
    """

    def __init__(self, state: RowState, request: Decode, config: RainConfig, cache: TreeCache | CopyingCache):
        self.state = state
        self.request = request
        self.config = config
        self.cache = cache
        self.place = state.place_of(request.node)
        self.generated = request.node.tokens_from_origin()

    def run(self) -> Generator[list[Ask], list[Told], tuple]:
        """Yields asks; returns `(rollout or None, candidates or None)`."""
        if self.place.told is None:
            ask = self._ask(self.place.parent, self.place.pending, (), is_drawn=True)
            (self.place.told,) = yield [ask]
        rollout = self._roll_out() if self.request.is_rollout else _nothing()
        expansion = self._expand(self.request.expansion) if self.request.expansion else _nothing()
        answers = yield from together([rollout, expansion])
        return tuple(answers)

    def _ask(self, parent: Handle | None, tokens, after: tuple[int, ...], is_drawn: bool = False) -> Ask:
        key = stream_key(self.state.key, "rollout", self.generated, len(after)) if is_drawn else None
        return Ask(self.state.row, parent, tuple(tokens), (*self.state.rules.prompt_ids, *self.generated, *after), key)

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
        rules = self.state.rules
        branches: list[tuple[int, ...]] = [()] * (expansion.has_greedy + len(expansion.draws))
        logs, is_open = [0.0] * len(branches), [True] * len(branches)
        read: dict[tuple[int, ...], Told] = {(): self.place.told}
        for step in range(expansion.length):
            live = [i for i, flag in enumerate(is_open) if flag]
            columns, scores, ids = self._choose(live, [read[branches[i]] for i in live], expansion, step)
            for line, i in enumerate(live):
                branches[i] = (*branches[i], int(ids[line, columns[line]]))
                logs[i] += float(scores[line, columns[line]])
                text = (*self.generated, *branches[i])
                is_open[i] = rules.finish_reason(text) is None and len(branches[i]) < expansion.length
            wanted = sorted({branches[i] for i in live if is_open[i]} - set(read))
            if not wanted:
                break
            told = yield [self._ask(read[each[:-1]].handle, each[-1:], each) for each in wanted]
            read.update(zip(wanted, told, strict=True))
        weights = torch.tensor(logs, dtype=torch.float64).exp().tolist()
        drawn = [self._candidate(tokens, weight) for tokens, weight in zip(branches, weights, strict=True)]
        greedy = int(expansion.has_greedy)
        candidates = weigh(tuple(drawn[:greedy]), drawn[greedy:])
        self._hang(candidates, read)
        return candidates

    def _choose(self, live: list[int], told: list[Told], expansion: Expansion, step: int):
        """Columns of the next tokens, and log probabilities and ids `(live, top_k)` that they point into."""
        width = min(self.config.sample_top_k, max(len(each.ids) for each in told))
        scores = torch.full((len(live), width), -torch.inf, dtype=torch.float64)
        ids = torch.zeros((len(live), width), dtype=torch.int64)
        for line, each in enumerate(told):
            count = min(width, len(each.ids))
            scores[line, :count], ids[line, :count] = each.scores[:count], each.ids[:count]
        scores = torch.log_softmax(scores / self.config.expansion_temperature, dim=-1)
        numbers = [i - expansion.has_greedy for i in live]
        draws = [-1 if number < 0 else expansion.draws[number] for number in numbers]
        keys = [stream_key(self.state.key, "expansion", self.generated, step, number) for number in draws]
        columns = draw(scores, keys, ids).tolist()
        return [0 if number < 0 else column for number, column in zip(numbers, columns, strict=True)], scores, ids

    def _hang(self, candidates: Sequence[Candidate], read: dict[tuple[int, ...], Told]) -> None:
        """Remember where each candidate hangs, for the node that may be made from it."""
        hung = self.state.hung.setdefault(self.request.node, {})
        for candidate in candidates:
            place = Place(read[candidate.tokens[:-1]].handle, candidate.tokens[-1:])
            hung.setdefault(candidate.tokens, place)


def _nothing() -> Asking:
    return None
    yield
