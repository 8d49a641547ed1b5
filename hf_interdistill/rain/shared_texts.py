"""Many texts with long common beginnings, read by one model: each shared token once.

Beginnings that come back (the judge prompt, and each prompt in flight) keep their keys and values between calls.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .cache import Feed, Handle
from .cache_choice import build_cache
from .scorers import Exchange

_TOKENS_A_PASS = 4096
_STEM_TOKENS_KEPT = 8192  # beyond the prefix; the stems used last stay


@dataclass(eq=False)
class Stem:
    """Token ids that many texts begin with, and where they have been read."""

    ids: list[int]
    handle: Handle | None = None

    def begins(self, context: Sequence[int]) -> bool:
        """Whether it has been read, and `context` begins with it and goes on."""
        length = len(self.ids)
        return self.handle is not None and len(context) > length and context[:length] == self.ids


class SharedTexts:
    """Reads the ends of texts that begin alike.

    Args:
        model: the model; not kept (see `reading_with`).
        prefix: token ids that all texts begin with.
        version: what `fingerprint` said of the model.
    """

    def __init__(self, model, prefix: list[int], version):
        self.version = version
        self.cache = build_cache(model, 1)  # the texts of a call stand side by side in one row
        self.prefix = Stem(prefix)
        self.stems: OrderedDict[str, Stem] = OrderedDict()
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

    def stem(self, exchange: Exchange, build: Callable) -> Stem:
        """The stem of an exchange's prompt, made with `build(prompt)` when it is new."""
        key = repr(exchange.prompt)
        if key not in self.stems:
            self.stems[key] = Stem(build(exchange.prompt))
        self.stems.move_to_end(key)
        return self.stems[key]

    def take_costs(self) -> tuple[int, int]:
        """Forward passes since the last call, and tokens of them that belong to no text."""
        passes, shared = self.cache.forward_passes - self._passes, self._shared_tokens
        self._passes, self._shared_tokens = self.cache.forward_passes, 0
        return passes, shared

    def read(self, contexts: Sequence[Sequence[list[int]]], stems: Sequence[Stem], columns: torch.Tensor):
        """Logits at the end of each context.

        Args:
            contexts: for each text, the token ids of each order.
            stems: for each text, its prompt's stem.
            columns: token ids whose logits are wanted.

        Returns:
            Logits `(texts, orders, columns)`, and the tokens read for each text.
        """
        if self.prefix.handle is None and self.prefix.ids:
            self.prefix.handle = self.cache.read([Feed(0, None, self.prefix.ids)], columns)[0].handle
            self._shared_tokens += len(self.prefix.ids)
        logits: list[torch.Tensor] = []
        tokens = [0] * len(contexts)
        for start, stop in self._chunks(contexts, stems):
            pieces = [(context, start + i) for i, orders in enumerate(contexts[start:stop]) for context in orders]
            opening = {id(stem): (stem, start + i) for i, stem in enumerate(stems[start:stop])}
            opened = [(stem, i) for stem, i in opening.values() if stem.handle is None and self._extends(stem)]
            sequences = [*pieces, *((stem.ids, i) for stem, i in opened)]
            feeds, ends, owners = plan_reads([ids for ids, _ in sequences], self._bases(sequences, stems))
            reads = self.cache.read(feeds, columns)
            logits.extend(reads[end].logits.cpu() for end in ends[: len(pieces)])
            for (stem, _), end in zip(opened, ends[len(pieces) :], strict=True):
                stem.handle = reads[end].handle
            for read, owner in zip(reads, owners, strict=True):
                tokens[sequences[owner][1]] += read.tokens
            self._forget([stem for stem, _ in opened])
        return torch.stack(logits).view(len(contexts), -1, len(columns)), tokens

    def _extends(self, stem: Stem) -> bool:
        return self.prefix.begins(stem.ids) if self.prefix.ids else bool(stem.ids)

    def _bases(self, sequences, stems: Sequence[Stem]) -> list[Stem | None]:
        """What has been read already of each sequence: its stem, the prefix, or nothing."""
        return [next((base for base in (stems[i], self.prefix) if base.begins(ids)), None) for ids, i in sequences]

    def _chunks(self, contexts, stems: Sequence[Stem]) -> list[tuple[int, int]]:
        """Ranges of texts of about `_TOKENS_A_PASS` new tokens at most."""
        ranges, start, total = [], 0, 0
        for i, orders in enumerate(contexts):
            known = stems[i].ids if stems[i].handle is not None else self.prefix.ids
            new = sum(max(1, len(context) - len(known)) for context in orders)
            if total + new > _TOKENS_A_PASS and i > start:
                ranges.append((start, i))
                start, total = i, 0
            total += new
        return [*ranges, (start, len(contexts))]

    def _forget(self, opened: Sequence[Stem]) -> None:
        """Free all but the prefix and the stems used last; texts at hand may still point to others."""
        own = len(self.prefix.ids)
        while sum(len(stem.ids) - own for stem in self.stems.values()) > _STEM_TOKENS_KEPT:
            self.stems.popitem(last=False)[1].handle = None
        kept = {id(stem) for stem in self.stems.values()}
        for stem in opened:
            stem.handle = stem.handle if id(stem) in kept else None
        handles = [stem.handle for stem in (self.prefix, *self.stems.values()) if stem.handle is not None]
        self.cache.keep_only(0, handles)


def common_length(sequences: Sequence[Sequence[int]], start: int = 0) -> int:
    """Length of the beginning that all sequences share; at least `start`, which they share already."""
    length = start
    shortest = min(map(len, sequences))
    while length < shortest and len({sequence[length] for sequence in sequences}) == 1:
        length += 1
    return length


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
