"""Records the queries and keys of chosen attention layers while a model runs its own attention.

Queries and keys are those that the model used: after query/key norms, after rotary positions or (`rope`) before them.

Under (non-reentrant) gradient checkpointing the layer runs again in backward. That happens outside the context, so
the second visit leaves no trace, and the graph of the first one is what gradients flow through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .interceptor import AttentionInterceptor
from .rotary import RotaryInterceptor

ALIGNMENT_ROPES = ("after", "before")


@dataclass(frozen=True)
class RecordedAttention:
    """What one attention layer was called with.

    Args:
        query: `(batch, heads, length, head_dim)`.
        key: `(batch, key_value_heads, length, head_dim)`.
        scaling: factor of the scores.
        softcap: the scores are `softcap * tanh(scores / softcap)`, where not `None`.
        window: width of sliding-window attention, `None` for full attention.
    """

    query: torch.Tensor
    key: torch.Tensor
    scaling: float
    softcap: float | None = None
    window: int | None = None


def resolve_layers(layers: Sequence[int], count: int, option: str) -> list[int]:
    """Layer numbers from 0, negative ones counted from the end.

    Raises:
        ValueError: a layer that the model does not have.
    """
    resolved = [layer + count if layer < 0 else layer for layer in layers]
    for layer, number in zip(layers, resolved, strict=True):
        if not 0 <= number < count:
            raise ValueError(
                f"`{option}` asks for layer {layer}, but the model has {count} layers: "
                f"use {-count} to {count - 1} (negative numbers count from the last layer)."
            )
    return resolved


class AttentionRecorder(AttentionInterceptor):
    """Context that records chosen layers of one model.

    Args:
        model: any transformers model whose attention goes through `AttentionInterface`, wrapped or not.
        layers: numbers of the layers to record, from 0.
        rope: queries and keys `after` rotary positions, as they are compared, or `before` them.

    After the context `records` holds one `RecordedAttention` a layer, in the order asked for.

    Raises:
        ValueError: on leaving the context, a layer that did no softmax attention through the interface, or did it more
            than once; with `before`, a model without rotary positions, or a layer that compares something else than
            what they gave.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int], rope: str = "after"):
        super().__init__(model)
        self.layers = list(layers)
        self._rotary = RotaryInterceptor(model) if rope == "before" else None
        self._by_layer: dict[int, RecordedAttention] = {}
        self._visits: dict[int, int] = {}

    @property
    def records(self) -> list[RecordedAttention]:
        return [self._by_layer[layer] for layer in self.layers]

    def __enter__(self) -> AttentionRecorder:
        self._by_layer, self._visits = {}, {}
        if self._rotary is not None:
            self._rotary.__enter__()
        return super().__enter__()

    def __exit__(self, exception_type, exception, traceback) -> None:
        super().__exit__(exception_type, exception, traceback)
        if self._rotary is not None:
            self._rotary.__exit__(exception_type, exception, traceback)
        if exception_type is None:
            self._check()

    def release(self) -> None:
        """Forget the tensors, so that nothing of the last batch stays in memory."""
        self._by_layer = {}

    def intercept(self, layer, attend, query, key, value, attention_mask, **kwargs):
        self._visits[layer] = self._visits.get(layer, 0) + 1
        if layer in self.layers:
            scaling = kwargs.get("scaling")
            own_query, own_key = (query, key) if self._rotary is None else self._rotary.before(layer, query, key)
            self._by_layer[layer] = RecordedAttention(
                query=_as_attended(own_query),
                key=_as_attended(own_key),
                scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
                softcap=kwargs.get("softcap"),
                window=kwargs.get("sliding_window"),
            )
        return attend(query, key, value, attention_mask, **kwargs)

    def _check(self) -> None:
        seen = sorted(self._visits)
        for layer in self.layers:
            visits = self._visits.get(layer, 0)
            if visits == 0:
                raise ValueError(
                    f"Layer {layer} did no softmax attention through transformers' AttentionInterface, so it has no "
                    f"queries and keys to align. Layers of this model that do: {seen or 'none'}. Choose among them, "
                    "or train with `alignment_weight=0`."
                )
            if visits > 1:
                raise ValueError(
                    f"Layer {layer} ran {visits} times in one forward pass (layers that share their weights); which "
                    "visit to align is undefined. Use a model with its own weights in each layer."
                )


def _as_attended(states: torch.Tensor) -> torch.Tensor:
    """In the precision of the attention's products: autocast lowers float32, which rotary positions give."""
    device = states.device.type
    if states.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return states.to(torch.get_autocast_dtype(device))
    return states
