"""The keys and values of one layer, in the slots of a pool."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.cache_utils import CacheLayerMixin


@dataclass
class Plan:
    """Where the tokens of a pass go, `slots` `(lines * width,)`, and what each line sees, `seen` `(lines, seen)`."""

    slots: torch.Tensor
    seen: torch.Tensor
    capacity: int


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, `(slots, heads, head_dim)`; `plan` says where new ones go and which are seen."""

    is_sliding = False

    def __init__(self):
        super().__init__()
        self.plan: Plan | None = None

    @torch.inference_mode(False)  # else nothing could be written once that mode is left; in `grow` too
    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = (
            states.new_zeros(self.plan.capacity, states.shape[1], states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.grow(self.plan.capacity)
        self._put(self.keys, key_states)
        self._put(self.values, value_states)
        return self._fetch(self.keys, self.plan.seen), self._fetch(self.values, self.plan.seen)

    @torch.inference_mode(False)
    def grow(self, capacity: int) -> None:
        """Make room for a pool of so many slots."""
        if len(self.keys) < capacity:
            self.keys, self.values = (_widened(held, capacity) for held in (self.keys, self.values))

    def _put(self, held: torch.Tensor, states: torch.Tensor) -> None:
        """Write `(lines, heads, width, head_dim)` into the slots."""
        held[self.plan.slots.to(held.device)] = states.transpose(1, 2).flatten(0, 1)

    @staticmethod
    def _fetch(held: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """The slots `seen` `(lines, seen)`, `(lines, heads, seen, head_dim)`."""
        seen = seen.to(held.device)
        return held.index_select(0, seen.flatten()).unflatten(0, seen.shape).transpose(1, 2)

    def get_seq_length(self) -> int:
        return self.plan.seen.shape[1] if self.plan else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.plan.seen.shape[1], 0

    def get_max_length(self) -> int:
        return -1


def _widened(held: torch.Tensor, capacity: int) -> torch.Tensor:
    wider = held.new_zeros(capacity, *held.shape[1:])
    wider[: len(held)] = held
    return wider
