"""A cache for models that cannot run a tree in one row: each cached text has keys and values of its own.

It has the interface of `TreeCache`, and serves sliding windows, linear attention, and positions that come from the
mask alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from transformers.cache_utils import Cache, DynamicCache

from .forward import CacheHandle, ForwardCounter, ForwardInput, ForwardOutput, cache_argument


class CopyCache(ForwardCounter):
    """Every cached text has a cache of its own; inputs of equal lengths run together, without padding.

    Memory grows with the number of texts times the length of the prefix: use `TreeCache` where the model allows it.
    """

    supports_mixed_lengths = False  # so no speculative work can share a pass: `num_speculative` is not used

    def __init__(self, model, rows: int):
        super().__init__()
        self.model = model
        self.rows = rows
        self.cache_argument = cache_argument(model)

    def free_row(self, row: int) -> None:
        """Nothing to do: a text's cache is freed with its handle."""

    def retain(self, row: int, handles: Iterable[CacheHandle]) -> None:
        """Nothing to do: a text's cache is freed with its handle."""

    def truncate(self, handle: CacheHandle, keep: CacheHandle) -> None:
        """Free a text's cache."""
        handle.cache = None

    def forward(
        self, inputs: Sequence[ForwardInput], token_ids: torch.Tensor | None = None
    ) -> dict[ForwardInput, ForwardOutput]:
        """Run the model on all inputs, in as few passes as equal lengths allow; see `TreeCache.forward`."""
        outputs: dict[ForwardInput, ForwardOutput] = {}
        waiting = list(inputs)
        while waiting:
            groups: dict[tuple[int, int], list[ForwardInput]] = {}
            for each in waiting:
                if not isinstance(each.parent, ForwardInput) or each.parent in outputs:
                    parent = _parent(each, outputs)
                    groups.setdefault((parent.length if parent else 0, len(each.tokens)), []).append(each)
            for (length, _), members in groups.items():
                self._run(members, length, outputs, token_ids)
            waiting = [each for each in waiting if each not in outputs]
        return {each: outputs[each] for each in inputs}

    @torch.no_grad()
    def _run(self, inputs: Sequence[ForwardInput], length: int, outputs: dict, token_ids) -> None:
        """One pass over inputs of equal lengths, after cached texts of `length` tokens each."""
        parents = [_parent(each, outputs) for each in inputs]
        held = [parent.cache for parent in parents if parent is not None and parent.cache is not None]
        cache: Cache = join_caches(held) if length else DynamicCache(config=self.model.config)
        device = self.model.device
        ids = torch.tensor([list(each.tokens) for each in inputs], device=device)
        total = length + ids.shape[1]
        mask = torch.ones(len(inputs), total, dtype=torch.long, device=device)
        kwargs = {"attention_mask": mask, self.cache_argument: cache}
        logits = self.model(input_ids=ids, use_cache=True, **kwargs).logits[:, -1]
        if token_ids is not None:
            logits = logits[:, token_ids.to(device)]
        self.count_pass(inputs)
        for number, (each, own) in enumerate(zip(inputs, split_cache(cache, len(inputs)), strict=True)):
            handle = CacheHandle(each.row, total, cache=own)
            outputs[each] = ForwardOutput(handle, len(each.tokens), logits[number].float())


def _parent(each: ForwardInput, outputs: dict[ForwardInput, ForwardOutput]) -> CacheHandle | None:
    return outputs[each.parent].handle if isinstance(each.parent, ForwardInput) else each.parent


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
    """The rows of a batch of caches, each as a separate cache (copies)."""
    return [_map_caches([cache], lambda parts, i=i: parts[0][i : i + 1].clone()) for i in range(count)]
