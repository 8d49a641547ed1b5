"""Logits at the ends of many texts with long common prefixes: each shared token is computed once.

Keys and values of recurring prefixes (the judge prompt, each active prompt, the answers so far) are kept between
calls.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..kv_cache.factory import build_cache
from ..kv_cache.forward import CacheHandle, ForwardInput
from ..kv_cache.tree_cache import TreeCache
from .prefix_cache import CachedPrefix, PromptPrefixCache, RadixPrefixCache, common_prefix_length

_TOKENS_PER_PASS = 4096


class CachedForward:
    """Runs a model on the ends of texts with a common start.

    Args:
        model: the model; it is not kept (see `lend`).
        prefix: token ids that all texts start with.
        cuda_graphs: see `RainConfig`.
    """

    def __init__(self, model, prefix: list[int], cuda_graphs: bool | None = None):
        self._lock = threading.Lock()
        self.cache = build_cache(model, 1, cuda_graphs)  # the texts of a call are packed into one row
        self.prefix = CachedPrefix(prefix)
        self.prefix_cache: RadixPrefixCache | PromptPrefixCache
        if isinstance(self.cache, TreeCache):
            self.prefix_cache = RadixPrefixCache(self.cache, self.prefix)
        else:
            self.prefix_cache = PromptPrefixCache(self.cache, self.prefix)
        self._passes = 0
        self._shared_tokens = 0
        self.cache.model = None

    @contextmanager
    def lend(self, model) -> Iterator[None]:
        """Lend the model for a call, since the cache between calls must not keep it alive. Threads take turns."""
        with self._lock:
            self.cache.model = model
            try:
                yield
            finally:
                self.cache.model = None
                self.cache.pop_row_counts(0)

    def pop_costs(self) -> tuple[int, int]:
        """Forward passes since the last call, and those of their tokens that belong to no text."""
        passes, shared = self.cache.forward_passes - self._passes, self._shared_tokens
        self._passes, self._shared_tokens = self.cache.forward_passes, 0
        return passes, shared

    def last_logits(
        self,
        contexts: Sequence[Sequence[list[int]]],
        prompts: Sequence[Any],
        build: Callable[[Any], list[int]],
        token_ids: torch.Tensor,
    ) -> tuple[torch.Tensor, list[int]]:
        """Logits after the last token of each context.

        Args:
            contexts: for each text, the token ids of each order.
            prompts: for each text, its prompt. build: the token ids that all texts of a prompt start with.
            token_ids: whose logits are wanted.

        Returns:
            Logits `(texts, orders, token_ids)`, and the tokens computed for each text.
        """
        if self.prefix.handle is None and self.prefix.ids:
            whole = ForwardInput(0, None, self.prefix.ids)
            self.prefix.handle = self.cache.forward([whole], token_ids)[whole].handle
            self._shared_tokens += len(self.prefix.ids)
        logits: list[torch.Tensor] = []
        num_tokens = [0] * len(contexts)
        for start, stop in self._chunks(contexts, prompts):
            chunk = [(context, start + i) for i, orders in enumerate(contexts[start:stop]) for context in orders]
            missing = self.prefix_cache.missing(prompts[start:stop], build)
            sequences = [*chunk, *((prefix.ids, start + number) for prefix, number in missing)]
            matches = self.prefix_cache.match([ids for ids, _ in sequences], [prompts[i] for _, i in sequences])
            ends, owners = plan_inputs([ids for ids, _ in sequences], matches)
            outputs = self.cache.forward(list(owners), token_ids)
            logits.extend(outputs[end].logits.cpu() for end in ends[: len(chunk)])
            for each, owner in owners.items():
                num_tokens[sequences[owner][1]] += outputs[each].num_tokens
            handles = [outputs[end].handle for end in ends]
            texts: dict[int, list[tuple[list[int], CacheHandle]]] = {}
            for (context, i), handle in zip(chunk, handles, strict=False):
                texts.setdefault(i, []).append((context, handle))
            computed = [(prefix, handle) for (prefix, _), handle in zip(missing, handles[len(chunk) :], strict=True)]
            self.prefix_cache.insert(list(texts.values()), computed)
        self.prefix_cache.evict()
        return torch.stack(logits).view(len(contexts), -1, len(token_ids)), num_tokens

    def _chunks(self, contexts, prompts: Sequence[Any]) -> list[tuple[int, int]]:
        """Ranges of texts of about `_TOKENS_PER_PASS` new tokens at most."""
        ranges, start, total = [], 0, 0
        for i, orders in enumerate(contexts):
            matches = self.prefix_cache.match(orders, [prompts[i]] * len(orders))
            cached = [len(match.ids) if match else 0 for match in matches]
            new = sum(max(1, len(context) - own) for context, own in zip(orders, cached, strict=True))
            if total + new > _TOKENS_PER_PASS and i > start:
                ranges.append((start, i))
                start, total = i, 0
            total += new
        return [*ranges, (start, len(contexts))]


def plan_inputs(
    sequences: Sequence[Sequence[int]], matches: Sequence[CachedPrefix | None]
) -> tuple[list[ForwardInput], dict[ForwardInput, int]]:
    """Forward inputs that compute all sequences after their cached prefixes, shared parts once.

    Args:
        sequences: token ids. matches: the cached prefix of each, which is shorter than the sequence.

    Returns:
        For each sequence the input at whose end it ends; and all inputs, parents first, with the number of the first
        sequence that needs each.
    """
    ends: dict[int, ForwardInput] = {}
    owners: dict[ForwardInput, int] = {}
    groups: dict[int, list[int]] = {}
    for i, match in enumerate(matches):
        groups.setdefault(id(match), []).append(i)
    stack: list[tuple[list[int], int, CacheHandle | ForwardInput | None]] = []
    for members in groups.values():
        match = matches[members[0]]
        stack.append((members, len(match.ids) if match else 0, match.handle if match else None))
    while stack:
        members, start, parent = stack.pop()
        by_token: dict[int, list[int]] = {}
        for i in members:
            by_token.setdefault(sequences[i][start], []).append(i)
        for branch in by_token.values():
            stop = common_prefix_length([sequences[i] for i in branch], start)
            new = ForwardInput(0, parent, sequences[branch[0]][start:stop])
            owners[new] = branch[0]
            longer = []
            for i in branch:
                if len(sequences[i]) == stop:
                    ends[i] = new
                else:
                    longer.append(i)
            if longer:
                stack.append((longer, stop, new))
    return [ends[i] for i in range(len(sequences))], owners
