"""Reading for the searches: what is asked of a forward pass, what it tells, and where nodes lie in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..config import RainConfig
from ..kv_cache.copy_cache import CopyingCache
from ..kv_cache.tree_cache import Feed, Handle, TreeCache
from ..search.tree import Node
from .sampler import draw
from .stopping import StopChecker


@dataclass
class Ask:
    """Tokens to read after `parent`; `prefix` is all of the text with them (prompt first), for the processors.

    Args:
        draw_key: stream of a token to draw from the whole vocabulary.
        choice_keys: streams of tokens to draw from the likeliest ones, `None` for the likeliest itself.
    """

    row: int
    parent: Handle | None
    tokens: Sequence[int]
    prefix: tuple[int, ...]
    draw_key: int | None = None
    choice_keys: Sequence[int | None] = ()


@dataclass
class Told:
    """The likeliest next tokens, best first (`ids`, `scores`: float64 log probabilities up to a constant), one drawn
    from all of them, and those chosen among the likeliest (see `choose`)."""

    handle: Handle
    ids: torch.Tensor
    scores: torch.Tensor
    drawn: int | None
    chosen: list[tuple[int, float]]


@dataclass
class Place:
    """What is known of a node: where it hangs in the cache, tokens still unread, and the next tokens once read."""

    parent: Handle | None
    pending: tuple[int, ...]
    told: Told | None = None
    is_asked: bool = False

    @property
    def handle(self) -> Handle | None:
        """The deepest place in the cache that this node needs."""
        return self.told.handle if self.told else self.parent


@dataclass
class RowState:
    """One prompt in flight: its row, rules, random streams, and the works begun for it.

    `places` are those of its nodes, by the tokens from the origin to the node's end; some may be of nodes that the
    tree does not have yet.
    """

    row: int
    rules: StopChecker
    key: int
    places: dict[tuple[int, ...], Place] = field(default_factory=dict)
    works: dict[tuple, Any] = field(default_factory=dict)  # see `works.py`

    def open(self) -> None:
        """Start at the prompt."""
        self.places[()] = Place(None, self.rules.prompt_ids)

    def rollouts(self) -> Iterator[tuple[int, ...]]:
        """All tokens of texts whose rollout is done and was not asked for yet."""
        for work in self.works.values():
            if work.is_done and work.expansion is None:
                yield (*work.generated, *work.result)

    def prune(self, cache: TreeCache | CopyingCache, root: Node) -> None:
        """Keep the places at and below the root, and free the rest of the row; works still going on are begun anew."""
        start = root.tokens_from_origin()
        finished = {key: work for key, work in self.works.items() if work.is_done}
        for work in self.works.values():
            work.close()
        self.works = {key: work for key, work in finished.items() if key[0][: len(start)] == start}
        self.places = {tokens: place for tokens, place in self.places.items() if tokens[: len(start)] == start}
        cache.keep_only(self.row, [place.handle for place in self.places.values() if place.handle is not None])


class Reader:
    """Reads asks in one forward pass and reduces the logits to what the tasks need.

    Args:
        cache: where keys and values lie.
        config: for the number of tokens to remember.
    """

    def __init__(self, cache: TreeCache | CopyingCache, config: RainConfig):
        self.cache = cache
        self.config = config
        self.width = max(config.max_children, config.sample_top_k, config.candidates)

    def read(self, asks: Sequence[Ask], states: dict[int, RowState]) -> list[Told]:
        """Answers in the order of the asks."""
        order = sorted(range(len(asks)), key=lambda i: asks[i].row)  # so that logits mostly come as they are wanted
        told = self._read([asks[i] for i in order], states)
        return [each for _, each in sorted(zip(order, told, strict=True), key=lambda pair: pair[0])]

    def _read(self, asks: Sequence[Ask], states: dict[int, RowState]) -> list[Told]:
        reads = self.cache.read([Feed(ask.row, ask.parent, ask.tokens) for ask in asks])
        scores = self._process(_side_by_side([read.logits for read in reads]), asks, states)
        values, ids = _likeliest(scores, min(self.width, scores.shape[1]))
        drawing = [i for i, ask in enumerate(asks) if ask.draw_key is not None]
        drawn: dict[int, int] = {}
        if drawing:
            columns = draw(scores[drawing], [asks[i].draw_key for i in drawing]).tolist()
            drawn = dict(zip(drawing, columns, strict=True))
        choosing = [(i, key) for i, ask in enumerate(asks) for key in ask.choice_keys]
        rows = [i for i, _ in choosing]
        chosen = iter(choose(values[rows], ids[rows], [key for _, key in choosing], self.config))
        told = []
        for i, (read, finite) in enumerate(zip(reads, values.isfinite().sum(-1).tolist(), strict=True)):
            own = [next(chosen) for _ in asks[i].choice_keys]
            told.append(Told(read.handle, ids[i, :finite], values[i, :finite], drawn.get(i), own))
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


def choose(
    values: torch.Tensor, ids: torch.Tensor, keys: Sequence[int | None], config: RainConfig
) -> list[tuple[int, float]]:
    """Tokens of an expansion: drawn from the likeliest ones by their probabilities among these.

    Args:
        values: log probabilities up to a constant, best first, `(rows, tokens)` on the CPU. ids: token ids of these.
        keys: the stream of each row's draw; `None` takes the likeliest token.
        config: for the number of tokens to draw from, and the temperature.

    Returns:
        For each row the token and its log probability.
    """
    if not keys:
        return []
    values, ids = values[:, : config.sample_top_k], ids[:, : config.sample_top_k]
    scores = torch.log_softmax(values / config.expansion_temperature, dim=-1)
    drawn = draw(scores, [key or 0 for key in keys], ids).tolist()
    columns = torch.tensor([[0 if key is None else column] for key, column in zip(keys, drawn, strict=True)])
    return list(zip(ids.gather(1, columns)[:, 0].tolist(), scores.gather(1, columns)[:, 0].tolist(), strict=True))


def _side_by_side(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows as one tensor: without a copy if they are neighbors in one already."""
    first, width = rows[0], len(rows[0])
    storage, start = first.untyped_storage().data_ptr(), first.storage_offset()
    for number, row in enumerate(rows):
        is_neighbor = row.untyped_storage().data_ptr() == storage and row.storage_offset() == start + number * width
        if not (is_neighbor and row.is_contiguous()):
            return torch.stack(list(rows))
    return first.as_strided((len(rows), width), (width, 1))


def _likeliest(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest scores and their ids `(rows, count)` on the CPU, float64; of equal scores the smaller id first."""
    top = scores.topk(count, dim=-1)
    ids, order = top.indices.cpu().sort(dim=-1)
    values, order = top.values.double().cpu().gather(1, order).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)
