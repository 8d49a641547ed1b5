"""The keys and values of one layer, in the slots of a pool."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.cache_utils import CacheLayerMixin


@dataclass
class AttentionMetadata:
    """Where a pass writes and what it attends to.

    Args:
        slots: where its tokens go, `(rows * width,)`.
        gather_slots: what each batch row attends to, `(rows, gathered)`.
        capacity: slots of the pool.
    """

    slots: torch.Tensor
    gather_slots: torch.Tensor
    capacity: int


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, `(slots, heads, head_dim)`; `metadata` says what the current pass writes and
    gathers."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor
    metadata: AttentionMetadata

    @torch.inference_mode(False)  # else nothing could be written once that mode is left; in `grow` too
    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = (
            states.new_zeros(self.metadata.capacity, states.shape[1], states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.grow(self.metadata.capacity)
        self._write(self.keys, key_states)
        self._write(self.values, value_states)
        return self._gather(self.keys), self._gather(self.values)

    @torch.inference_mode(False)
    def grow(self, capacity: int) -> None:
        """Make room for a pool of so many slots."""
        if len(self.keys) < capacity:
            self.keys, self.values = (_grown(held, capacity) for held in (self.keys, self.values))

    def _write(self, held: torch.Tensor, states: torch.Tensor) -> None:
        """Write `(rows, heads, width, head_dim)` into the slots."""
        held[self.metadata.slots.to(held.device)] = states.transpose(1, 2).flatten(0, 1)

    def _gather(self, held: torch.Tensor) -> torch.Tensor:
        """What each batch row attends to, `(rows, heads, gathered, head_dim)`."""
        slots = self.metadata.gather_slots.to(held.device)
        return held.index_select(0, slots.flatten()).unflatten(0, slots.shape).transpose(1, 2)

    def get_seq_length(self) -> int:
        return self.metadata.gather_slots.shape[1] if hasattr(self, "metadata") else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.metadata.gather_slots.shape[1], 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:  # the same in the oldest versions of transformers
        return self.get_max_length()


def _grown(held: torch.Tensor, capacity: int) -> torch.Tensor:
    larger = held.new_zeros(capacity, *held.shape[1:])
    larger[: len(held)] = held
    return larger
