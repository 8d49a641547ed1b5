"""Inputs and outputs of a forward pass by branch: the common types of engine, caches and scorers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin

_CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params")
_NO_SLOTS = np.zeros(0, dtype=np.int64)
_NO_VALUES = torch.zeros(0)


@dataclass(eq=False)
class CacheHandle:
    """A cached text: the keys and values of all its tokens.

    Args:
        row: the prompt that it belongs to. length: its tokens.
        slots: where its tokens lie, `(length,)` (`TreeCache`). cache: its own cache (`CopyCache`).
    """

    row: int
    length: int
    slots: np.ndarray = field(default_factory=lambda: _NO_SLOTS)
    cache: Cache | None = None


@dataclass(eq=False)
class ForwardInput:
    """One branch of a forward pass.

    Args:
        row: the prompt that it belongs to.
        parent: the cached text that the tokens follow; another input of the same call; or `None` (a new text).
        tokens: token ids to run the model on, at least one.
        prefix: the whole text with these tokens, prompt first; logits processors see it.
        sample_key: random stream of a token to sample from the whole vocabulary.
        choice_keys: random streams of tokens to sample from the likeliest ones; `None` for the likeliest itself.
    """

    row: int
    parent: CacheHandle | ForwardInput | None
    tokens: Sequence[int]
    prefix: tuple[int, ...] = ()
    sample_key: int | None = None
    choice_keys: Sequence[int | None] = ()


@dataclass(eq=False)
class ForwardOutput:
    """The result of a forward pass for one branch.

    Args:
        handle: the cached text with the branch's tokens.
        num_tokens: tokens that the model was run on for it (fewer than given where a prefix was cached).
        logits: after the last token, float32, `(vocabulary,)` or `(token ids asked for,)`; empty once the sampler has
            reduced them.
        top_scores, top_ids: the likeliest next tokens, best first: float64 log probabilities up to a constant, and
            token ids, `(tokens,)` on the CPU.
        sampled: the token of `sample_key`; -1 if none was asked for. choices: token and log probability for each of
            `choice_keys`.
    """

    handle: CacheHandle
    num_tokens: int
    logits: torch.Tensor
    top_scores: torch.Tensor = field(default_factory=lambda: _NO_VALUES)
    top_ids: torch.Tensor = field(default_factory=lambda: _NO_VALUES)
    sampled: int = -1
    choices: list[tuple[int, float]] = field(default_factory=list)

    def release_logits(self) -> None:
        """Free the logits: they are as large as the vocabulary, and outputs are kept as long as their nodes."""
        self.logits = _NO_VALUES


class ForwardCounter:
    """Forward passes and tokens, in total and by row."""

    def __init__(self):
        self.forward_passes = 0
        self.forward_tokens = 0
        self._by_row: dict[int, list[int]] = {}

    def count_pass(self, branches: Iterable) -> None:
        """Count a pass over branches, each with `row` and `tokens`."""
        self.forward_passes += 1
        tokens: dict[int, int] = {}
        for branch in branches:
            tokens[branch.row] = tokens.get(branch.row, 0) + len(branch.tokens)
        for row, number in tokens.items():
            self.forward_tokens += number
            counts = self._by_row.setdefault(row, [0, 0])
            counts[0] += 1
            counts[1] += number

    def pop_row_counts(self, row: int) -> tuple[int, int]:
        """Passes and tokens of a row since the last call."""
        passes, tokens = self._by_row.pop(row, (0, 0))
        return passes, tokens


def cache_argument(model) -> str:
    """The name under which a model's forward takes its cache: `cache` since transformers 5.24, before that
    `past_key_values` or (Mamba) `cache_params`; models with code of their own may keep an older name."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    taken = inspect.signature(base.forward).parameters
    usual = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    return next(name for names in (taken, usual) for name in _CACHE_ARGUMENTS if name in names)
