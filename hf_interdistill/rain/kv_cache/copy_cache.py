"""A cache for models that cannot read a tree in one row: each place holds keys and values of its own.

It has the interface of `TreeCache`, and serves sliding windows, linear attention, and positions that come from the
mask alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from transformers.cache_utils import Cache, DynamicCache

from .tree_cache import Counting, Feed, Handle, Read, cache_argument


class CopyingCache(Counting):
    """Every place has a cache of its own; feeds of equal lengths are read together, without padding.

    Memory grows with places times prefix: use `TreeCache` where the model allows.
    """

    mixes_lengths = False  # so nothing can ride along in a pass: `num_speculative` is not used

    def __init__(self, model, rows: int):
        super().__init__()
        self.model = model
        self.rows = rows
        self.cache_argument = cache_argument(model)

    def clear(self, row: int) -> None:
        """Nothing to do: a place's cache goes with its handle."""

    def keep_only(self, row: int, handles: Iterable[Handle]) -> None:
        """Nothing to do: a place's cache goes with its handle."""

    def drop(self, handle: Handle, keep: Handle) -> None:
        """Let a place's cache go."""
        handle.cache = None

    def read(self, feeds: Sequence[Feed], columns: torch.Tensor | None = None) -> list[Read]:
        """Read all feeds, in as few forward passes as equal lengths allow; see `TreeCache.read`."""
        reads: list[Read | None] = [None] * len(feeds)
        waiting = list(range(len(feeds)))
        while waiting:
            ready = [i for i in waiting if not isinstance(feeds[i].parent, int) or reads[feeds[i].parent] is not None]
            groups: dict[tuple[int, int], list[int]] = {}
            for i in ready:
                parent = self._parent(feeds[i], reads)
                groups.setdefault((parent.length if parent else 0, len(feeds[i].tokens)), []).append(i)
            for (length, _), members in groups.items():
                parents = [self._parent(feeds[i], reads) for i in members]
                results = self._read_group([feeds[i] for i in members], parents, length, columns)
                for i, read in zip(members, results, strict=True):
                    reads[i] = read
            waiting = [i for i in waiting if reads[i] is None]
        return reads

    @staticmethod
    def _parent(feed: Feed, reads) -> Handle | None:
        return reads[feed.parent].handle if isinstance(feed.parent, int) else feed.parent

    @torch.no_grad()
    def _read_group(self, feeds: Sequence[Feed], parents, length: int, columns) -> list[Read]:
        cache = join_caches([parent.cache for parent in parents]) if length else DynamicCache(config=self.model.config)
        device = self.model.device
        ids = torch.tensor([list(feed.tokens) for feed in feeds], device=device)
        total = length + ids.shape[1]
        mask = torch.ones(len(feeds), total, dtype=torch.long, device=device)
        kwargs = {"attention_mask": mask, self.cache_argument: cache}
        logits = self.model(input_ids=ids, use_cache=True, **kwargs).logits[:, -1]
        if columns is not None:
            logits = logits[:, columns.to(device)]
        tokens: dict[int, int] = {}
        for feed in feeds:
            tokens[feed.row] = tokens.get(feed.row, 0) + len(feed.tokens)
        self.count(tokens)
        caches = split_cache(cache, len(feeds))
        return [
            Read(Handle(feed.row, total, cache=own), logits[i].float(), len(feed.tokens))
            for i, (feed, own) in enumerate(zip(feeds, caches, strict=True))
        ]


def _map_tensors(values: list, combine):
    """Apply `combine` to the parallel tensors of equal objects, through lists and dicts; the rest is the first's."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        return combine(values) if first.dim() > 0 else first.clone()
    if isinstance(first, list | tuple):
        return type(first)(_map_tensors(list(parts), combine) for parts in zip(*values, strict=True))
    if isinstance(first, dict):
        return {key: _map_tensors([value[key] for value in values], combine) for key in first}
    return copy.copy(first) if not isinstance(first, torch.device | torch.dtype) else first


def _map_caches(caches: Sequence[Cache], combine) -> Cache:
    joined = copy.copy(caches[0])
    joined.layers = []
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        layer = copy.copy(layers[0])
        for name in vars(layer):
            setattr(layer, name, _map_tensors([vars(each)[name] for each in layers], combine))
        joined.layers.append(layer)
    return joined


def join_caches(caches: Sequence[Cache]) -> Cache:
    """One batch of caches that hold equally many tokens each (copies)."""
    return _map_caches(caches, lambda parts: torch.cat(parts, dim=0))


def split_cache(cache: Cache, count: int) -> list[Cache]:
    """The rows of a batch of caches, each a cache of its own (copies)."""
    return [_map_caches([cache], lambda parts, i=i: parts[0][i : i + 1].clone()) for i in range(count)]
