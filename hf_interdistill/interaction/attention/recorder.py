"""Records the queries and keys of selected attention layers during a forward pass.

Queries and keys are those that the model multiplies: after query and key norms and after rotary positions.

Under non-reentrant gradient checkpointing a layer runs again in the backward pass. That happens outside the context,
so the second run is not recorded, and gradients flow through the graph of the first run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .interceptor import AttentionInterceptor


@dataclass(frozen=True)
class RecordedAttention:
    """Arguments of one attention call.

    Args:
        query: `(batch, heads, length, head_dim)`.
        key: `(batch, key_value_heads, length, head_dim)`.
        scaling: factor of the scores.
        softcap: if set, the scores are `softcap * tanh(scores / softcap)`.
        window: tokens in the window of sliding-window attention; `None` for full attention.
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
    """Context that records selected layers of one model.

    Args:
        model: any transformers model whose attention goes through `AttentionInterface`, wrapped or not.
        layers: numbers of the layers to record, from 0.

    After the context `records` holds one `RecordedAttention` per layer, in the order of `layers`.

    Raises:
        ValueError: on exit, if a layer did not run softmax attention through the interface, or ran more than once.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int]):
        super().__init__(model)
        self.layers = list(layers)
        self._by_layer: dict[int, RecordedAttention] = {}
        self._calls: dict[int, int] = {}

    @property
    def records(self) -> list[RecordedAttention]:
        return [self._by_layer[layer] for layer in self.layers]

    def __enter__(self) -> AttentionRecorder:
        self._by_layer, self._calls = {}, {}
        return super().__enter__()

    def __exit__(self, exception_type, exception, traceback) -> None:
        super().__exit__(exception_type, exception, traceback)
        if exception_type is None:
            self._check()

    def release(self) -> None:
        """Drop the recorded tensors, so that none of the last batch stays in memory."""
        self._by_layer = {}

    def intercept(self, layer, attend, query, key, value, attention_mask, **kwargs):
        self._calls[layer] = self._calls.get(layer, 0) + 1
        if layer in self.layers:
            self.record(layer, query, key, **kwargs)
        return attend(query, key, value, attention_mask, **kwargs)

    def record(self, layer: int, query: torch.Tensor, key: torch.Tensor, **kwargs) -> None:
        """Keep one attention call of a selected layer.

        Args:
            query, key, **kwargs: the arguments of the attention call (`scaling`, `softcap`, `sliding_window`, ...).
        """
        scaling = kwargs.get("scaling")
        self._by_layer[layer] = RecordedAttention(
            query=_to_autocast_dtype(query),
            key=_to_autocast_dtype(key),
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            softcap=kwargs.get("softcap"),
            window=kwargs.get("sliding_window"),
        )

    def _check(self) -> None:
        seen = sorted(self._calls)
        for layer in self.layers:
            calls = self._calls.get(layer, 0)
            if calls == 0:
                raise ValueError(
                    f"Layer {layer} did no softmax attention through transformers' AttentionInterface, so it has no "
                    f"queries and keys to align. Layers of this model that do: {seen or 'none'}. Choose among them, "
                    "or train with `alignment_weight=0`."
                )
            if calls > 1:
                raise ValueError(
                    f"Layer {layer} ran {calls} times in one forward pass (layers that share their weights), so it is "
                    "undefined which run to align. Use a model with separate weights in each layer."
                )


def _to_autocast_dtype(states: torch.Tensor) -> torch.Tensor:
    """The dtype in which attention multiplies: autocast lowers the float32 that rotary positions return."""
    device = states.device.type
    if states.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return states.to(torch.get_autocast_dtype(device))
    return states
