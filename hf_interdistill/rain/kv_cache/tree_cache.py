"""Keys and values of a search: each token of a tree is held once.

`TreeCache` is one pool of slots for all prompts. A token's keys and values lie in one slot; a forward pass fetches the
slots that its texts see, a 4-D mask says which of them each token sees (its ancestors and itself), and position ids
count its depth. Branching copies nothing, pruning frees slots, and prompts share the slots of a beginning that is the
same (`slots.py`). That needs full attention in every layer; `copying.py` serves all other models.

Source: ours; the packing of branches under a mask is that of tree attention in speculative decoding.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin

from .batching import families, split_passes
from .cuda_graphs import Graphs
from .layers import Plan, SlotLayer
from .slot_allocator import SlotPool

_CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params")
_SLOTS_OF_GRAPHS = 2048  # of the pool, at first, for each row up to four: when it grows, all graphs are gone


@dataclass(eq=False)
class Handle:
    """A place in a row (a prompt): the text up to here. `slots` in `TreeCache`, `cache` in `CopyingCache`."""

    row: int
    length: int
    slots: np.ndarray | None = None
    cache: Cache | None = None


@dataclass
class Feed:
    """Tokens to read after `parent`: a handle, the number of an earlier feed of the same call, or `None` (start)."""

    row: int
    parent: Handle | int | None
    tokens: Sequence[int]


@dataclass
class Read:
    """What reading gives: the new place, the logits after its last token, float32 `(vocabulary,)` or `(columns,)`, and
    how many tokens were read for it."""

    handle: Handle
    logits: torch.Tensor
    tokens: int


def cache_argument(model) -> str:
    """The name under which a model's forward takes its cache: `cache` since transformers 5.24, before that
    `past_key_values` or (Mamba) `cache_params`; models with code of their own may keep an older name."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    taken = inspect.signature(base.forward).parameters
    usual = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    return next(name for names in (taken, usual) for name in _CACHE_ARGUMENTS if name in names)


class Counting:
    """Forward passes and tokens, in total and by row."""

    def __init__(self):
        self.forward_passes = 0
        self.forward_tokens = 0
        self.by_row: dict[int, list[int]] = {}

    def count(self, tokens_by_row: dict[int, int]) -> None:
        self.forward_passes += 1
        for row, tokens in tokens_by_row.items():
            self.forward_tokens += tokens
            counts = self.by_row.setdefault(row, [0, 0])
            counts[0] += 1
            counts[1] += tokens

    def take_row(self, row: int) -> tuple[int, int]:
        """Passes and tokens of a row since it was last taken."""
        passes, tokens = self.by_row.pop(row, (0, 0))
        return passes, tokens


class TreeCache(Counting):
    """A pool of slots under tree masks.

    Args:
        model: a causal LM with full attention in every layer, run with sdpa or eager attention.
        rows: prompts held at once.
        graphs: replay passes that fit (see `graphs.py`); `None`: all are read eagerly.
    """

    mixes_lengths = True  # texts of all lengths are read in one pass

    def __init__(self, model, rows: int, graphs: Graphs | None = None):
        super().__init__()
        self.model = model
        self.rows = rows
        self.graphs = graphs
        self.pool = SlotPool(rows) if graphs is None else SlotPool(rows, _SLOTS_OF_GRAPHS * min(rows, 4))
        layers = len(DynamicCache(config=model.config).layers)
        self.cache = Cache(layers=[SlotLayer() for _ in range(layers)])
        self.keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.cache_argument = cache_argument(model)

    @property
    def held_tokens(self) -> int:
        """Tokens whose keys and values are held now; what rows share counts once."""
        return self.pool.held

    def clear(self, row: int) -> None:
        """Forget a row."""
        self.keep_only(row, ())

    def keep_only(self, row: int, handles: Iterable[Handle]) -> None:
        """Free every slot of a row that no handle reaches."""
        kept: set[int] = set()
        for handle in handles:
            kept.update(handle.slots.tolist())
        self.pool.keep_only(row, kept)

    def keep_slots(self, row: int, slots: set[int]) -> None:
        """Free every slot of a row but these."""
        self.pool.keep_only(row, slots)

    def drop(self, handle: Handle, keep: Handle) -> None:
        """Free the slots of `handle` beyond those of its ancestor `keep`."""
        self.pool.free(handle.row, handle.slots[keep.length :].tolist())

    def read(self, feeds: Sequence[Feed], columns: torch.Tensor | None = None) -> list[Read]:
        """Read all feeds in one forward pass; those with very many tokens (new prompts) in one of their own.

        Args:
            feeds: what to read. columns: token ids whose logits are wanted; `None` for all.
        """
        handles: list[Handle] = []
        left: list[Feed] = []
        openers: dict[int, int] = {}  # row -> the feed of this call that its text begins with
        for number, feed in enumerate(feeds):
            parent = handles[feed.parent] if isinstance(feed.parent, int) else feed.parent
            if parent is None:
                slots, shared, owner = self.pool.open(feed.row, feed.tokens)
                feed = Feed(feed.row, openers.get(owner), feed.tokens[shared:])
                openers[feed.row] = number
            else:
                slots = np.concatenate([parent.slots, self.pool.take(feed.row, len(feed.tokens))])
            handles.append(Handle(feed.row, len(slots), slots))
            left.append(feed)
        feeds = left
        reads: list[Read | None] = [None] * len(feeds)
        for chosen in self._passes(feeds):
            lines = [chosen]
            logits = self._replay(feeds, handles, chosen, columns)
            if logits is None:
                lines = self._lines(feeds, chosen)
                laid = self._lay_out(feeds, handles, lines)
                logits = self._read_eagerly(laid, max(map(len, lines)), columns)
            self.count(_tokens_by_row(feeds[i] for i in chosen))
            for own, line in zip(logits, lines, strict=True):
                for position, number in enumerate(line, start=len(own) - len(line)):
                    reads[number] = Read(handles[number], own[position], len(feeds[number].tokens))
        return reads

    @staticmethod
    def _passes(feeds: Sequence[Feed]) -> list[list[int]]:
        """The feeds of each pass."""
        members = families([feed.parent if isinstance(feed.parent, int) else None for feed in feeds])
        members.sort(key=lambda family: feeds[family[0]].row)
        passes = split_passes([sum(len(feeds[i].tokens) for i in family) for family in members])
        return [[i for number in numbers for i in members[number]] for numbers in passes]

    @staticmethod
    def _lines(feeds: Sequence[Feed], chosen: Sequence[int]) -> list[list[int]]:
        """The feeds of each line of a pass: one line a row, so that no prompt is compared with another's tokens."""
        lines: dict[int, list[int]] = {}
        for number in chosen:
            lines.setdefault(feeds[number].row, []).append(number)
        return list(lines.values())

    def _lay_out(
        self, feeds: Sequence[Feed], handles: Sequence[Handle], lines: Sequence[Sequence[int]], width=0, most=0
    ) -> dict[str, np.ndarray]:
        """Ids, positions, slots and mask of one forward pass; the last token of each feed stands at its line's end.
        Lines have `width` tokens and see `most` slots, or as many more as they need."""
        seen = [self._seen(handles, line) for line in lines]
        width = max(width, *(sum(len(feeds[i].tokens) for i in line) for line in lines))
        most = max(most, *map(len, seen))
        ids = np.zeros((len(lines), width), dtype=np.int64)
        positions, slots = np.zeros_like(ids), np.zeros_like(ids)
        fetched = np.zeros((len(lines), most), dtype=np.int64)
        mask = np.zeros((len(lines), 1, width, most), dtype=bool)
        column_of = np.zeros(self.pool.capacity, dtype=np.int64)
        for place, line in enumerate(lines):
            own = seen[place]
            fetched[place, : len(own)] = own
            column_of[own] = np.arange(len(own))
            last = width - len(line)
            column = last - sum(len(feeds[i].tokens) - 1 for i in line)
            mask[place, 0, :column, 0] = True  # padding sees slot 0
            for final, number in enumerate(line, start=last):
                tokens, chain = feeds[number].tokens, handles[number].slots
                start = len(chain) - len(tokens)
                if len(tokens) == 1:
                    ids[place, final], positions[place, final], slots[place, final] = tokens[0], start, chain[-1]
                    mask[place, 0, final, column_of[chain]] = True
                    continue
                columns = np.array([*range(column, column + len(tokens) - 1), final])
                column += len(tokens) - 1
                ids[place, columns] = tokens
                positions[place, columns] = np.arange(start, len(chain))
                slots[place, columns] = chain[start:]
                rows = columns[:, None]
                mask[place, 0, rows, column_of[chain[:start]]] = True
                mask[place, 0, rows, column_of[chain[start:]]] = np.tri(len(tokens), dtype=bool)
        return {"ids": ids, "positions": positions, "slots": slots, "seen": fetched, "mask": mask}

    def _on_device(self, numbers: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(numbers).to(self.model.device)

    def _seen(self, handles: Sequence[Handle], line: Sequence[int]) -> np.ndarray:
        """All slots that the feeds of a line see, ascending; slot 0, for padding, comes first."""
        is_seen = np.zeros(self.pool.capacity, dtype=bool)
        is_seen[0] = True
        for number in line:
            is_seen[handles[number].slots] = True
        return np.flatnonzero(is_seen)

    def _replay(self, feeds: Sequence[Feed], handles: Sequence[Handle], chosen, columns) -> torch.Tensor | None:
        """Logits of a pass by its graph, `(1, chosen, vocabulary or columns)`; `None` where there is none."""
        layers, capacity = self.cache.layers, self.pool.capacity
        if self.graphs is None or not all(layer.is_initialized for layer in layers):
            return None
        seen = self._seen(handles, chosen)
        for layer in layers:
            layer.grow(capacity)
        tokens = sum(len(feeds[i].tokens) for i in chosen)
        shape = self.graphs.shape(self.model, layers, tokens, len(chosen), len(seen), columns)
        if shape is None:
            return None
        laid = self._lay_out(feeds, handles, [chosen], shape.width, shape.seen)
        logits = self.graphs.read(self.model, shape, laid, capacity, self._forward)
        return None if logits is None else logits[:, -len(chosen) :].to(torch.float32, copy=True)

    def _read_eagerly(self, laid: dict[str, np.ndarray], keep: int, columns: torch.Tensor | None) -> torch.Tensor:
        """Logits of the last `keep` tokens of each line, float32 `(lines, keep, vocabulary or columns)`."""
        on_device = {name: self._on_device(values) for name, values in laid.items()}
        plan = Plan(on_device["slots"].flatten(), on_device["seen"], self.pool.capacity)
        ids, positions, mask = (on_device[name] for name in ("ids", "positions", "mask"))
        return self._forward(ids, positions, mask, plan, keep, columns).float()

    @torch.no_grad()
    def _forward(self, ids, positions, mask: torch.Tensor, plan: Plan, keep: int, columns) -> torch.Tensor:
        """Logits as in `_read_eagerly`, in the model's dtype; `mask` is boolean, and all is on the device."""
        for layer in self.cache.layers:
            layer.plan = plan
        extra = {"logits_to_keep": keep} if self.keeps_logits else {}
        # An additive mask: sdpa would make one of a boolean mask in every layer.
        mask = torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device).masked_fill(
            ~mask, torch.finfo(self.model.dtype).min
        )
        logits = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            use_cache=True,
            **{self.cache_argument: self.cache},
            **extra,
        ).logits[:, -keep:]
        return logits if columns is None else logits[..., columns.to(logits.device)]


def _tokens_by_row(feeds: Iterable[Feed]) -> dict[int, int]:
    tokens: dict[int, int] = {}
    for feed in feeds:
        tokens[feed.row] = tokens.get(feed.row, 0) + len(feed.tokens)
    return tokens
