"""Many texts with long common beginnings, read by one model: each shared token once.

Beginnings that come back (the judge prompt, each prompt in flight, the answers so far) keep their keys and values
between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..kv_cache.factory import build_cache
from ..kv_cache.tree_cache import Feed, Handle
from .prefix_cache import PromptStems, ReadTexts, Stem, common_length

_TOKENS_A_PASS = 4096


class SharedTexts:
    """Reads the ends of texts that begin alike.

    Args:
        model: the model; not kept (see `reading_with`).
        prefix: token ids that all texts begin with.
        version: what `fingerprint` said of the model.
        cuda_graphs: see `RainConfig`.
    """

    def __init__(self, model, prefix: list[int], version, cuda_graphs: bool | None = None):
        self.version = version
        self.cache = build_cache(model, 1, cuda_graphs)  # the texts of a call stand side by side in one row
        self.prefix = Stem(prefix)
        self.known = (ReadTexts if self.cache.mixes_lengths else PromptStems)(self.cache, self.prefix)
        self._passes = 0
        self._shared_tokens = 0
        self.cache.model = None

    @contextmanager
    def reading_with(self, model) -> Iterator[None]:
        """Lend the model: what is kept between calls must not keep it alive."""
        self.cache.model = model
        try:
            yield
        finally:
            self.cache.model = None
            self.cache.take_row(0)

    def take_costs(self) -> tuple[int, int]:
        """Forward passes since the last call, and tokens of them that belong to no text."""
        passes, shared = self.cache.forward_passes - self._passes, self._shared_tokens
        self._passes, self._shared_tokens = self.cache.forward_passes, 0
        return passes, shared

    def read(
        self,
        contexts: Sequence[Sequence[list[int]]],
        prompts: Sequence[Any],
        build: Callable[[Any], list[int]],
        columns: torch.Tensor,
    ) -> tuple[torch.Tensor, list[int]]:
        """Logits at the end of each context.

        Args:
            contexts: for each text, the token ids of each order.
            prompts: for each text, its prompt. build: the token ids that all texts of a prompt begin with.
            columns: token ids whose logits are wanted.

        Returns:
            Logits `(texts, orders, columns)`, and the tokens read for each text.
        """
        if self.prefix.handle is None and self.prefix.ids:
            self.prefix.handle = self.cache.read([Feed(0, None, self.prefix.ids)], columns)[0].handle
            self._shared_tokens += len(self.prefix.ids)
        logits: list[torch.Tensor] = []
        tokens = [0] * len(contexts)
        for start, stop in self._chunks(contexts, prompts):
            pieces = [(context, start + i) for i, orders in enumerate(contexts[start:stop]) for context in orders]
            openings = self.known.openings(prompts[start:stop], build)
            sequences = [*pieces, *((stem.ids, start + place) for stem, place in openings)]
            bases = self.known.bases([ids for ids, _ in sequences], [prompts[i] for _, i in sequences])
            feeds, ends, owners = plan_reads([ids for ids, _ in sequences], bases)
            reads = self.cache.read(feeds, columns)
            logits.extend(reads[end].logits.cpu() for end in ends[: len(pieces)])
            for read, owner in zip(reads, owners, strict=True):
                tokens[sequences[owner][1]] += read.tokens
            handles = [reads[end].handle for end in ends]
            texts: dict[int, list[tuple[list[int], Handle]]] = {}
            for (context, i), handle in zip(pieces, handles, strict=False):
                texts.setdefault(i, []).append((context, handle))
            opened = [(stem, handle) for (stem, _), handle in zip(openings, handles[len(pieces) :], strict=True)]
            self.known.keep(list(texts.values()), opened)
        self.known.end_call()
        return torch.stack(logits).view(len(contexts), -1, len(columns)), tokens

    def _chunks(self, contexts, prompts: Sequence[Any]) -> list[tuple[int, int]]:
        """Ranges of texts of about `_TOKENS_A_PASS` new tokens at most."""
        ranges, start, total = [], 0, 0
        for i, orders in enumerate(contexts):
            bases = self.known.bases(orders, [prompts[i]] * len(orders))
            known = [len(base.ids) if base else 0 for base in bases]
            new = sum(max(1, len(context) - own) for context, own in zip(orders, known, strict=True))
            if total + new > _TOKENS_A_PASS and i > start:
                ranges.append((start, i))
                start, total = i, 0
            total += new
        return [*ranges, (start, len(contexts))]


def plan_reads(
    sequences: Sequence[Sequence[int]], bases: Sequence[Stem | None]
) -> tuple[list[Feed], list[int], list[int]]:
    """Feeds that read all sequences after their bases, shared beginnings once.

    Args:
        sequences: token ids. bases: what of each has been read (each sequence goes on beyond it).

    Returns:
        The feeds; for each sequence the feed at whose end it ends; for each feed the first sequence that needs it.
    """
    feeds: list[Feed] = []
    owners: list[int] = []
    ends = [-1] * len(sequences)
    groups: dict[int, list[int]] = {}
    for i, base in enumerate(bases):
        groups.setdefault(id(base), []).append(i)
    stack: list[tuple[list[int], int, Handle | int | None]] = [
        (members, len(bases[members[0]].ids) if bases[members[0]] else 0, getattr(bases[members[0]], "handle", None))
        for members in groups.values()
    ]
    while stack:
        members, start, parent = stack.pop()
        branches: dict[int, list[int]] = {}
        for i in members:
            branches.setdefault(sequences[i][start], []).append(i)
        for branch in branches.values():
            stop = common_length([sequences[i] for i in branch], start)
            feeds.append(Feed(0, parent, sequences[branch[0]][start:stop]))
            owners.append(branch[0])
            here = len(feeds) - 1
            for i in branch:
                if len(sequences[i]) == stop:
                    ends[i] = here
            longer = [i for i in branch if len(sequences[i]) > stop]
            if longer:
                stack.append((longer, stop, here))
    return feeds, ends, owners


def fingerprint(model) -> tuple[int, int]:
    """Changes when parameters are updated in place or replaced."""
    parameters = list(model.parameters())
    return sum(each._version for each in parameters), sum(each.data_ptr() for each in parameters)
