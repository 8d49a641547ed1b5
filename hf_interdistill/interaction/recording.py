"""Records the queries and keys of chosen attention layers while a model runs its own attention.

Works through `AttentionInterface`, the extension point of transformers: inside the context, the function registered
for the model's attention implementation is one that notes query and key and then calls the model's own. The name, and
with it the mask that transformers builds, stays the same, so padding and causality are untouched. Queries and keys are
those that the model used: after rotary positions, after query/key norms.

Under (non-reentrant) gradient checkpointing the layer runs again in backward. That happens outside the context, so
the second visit leaves no trace, and the graph of the first one is what gradients flow through.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AttentionInterface


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


def layer_of_modules(model: nn.Module) -> dict[nn.Module, int]:
    """The layer that each submodule belongs to: the first number in its dotted name (`model.layers.3.self_attn`)."""
    layers = {}
    for name, module in model.named_modules():
        number = next((part for part in name.split(".") if part.isdigit()), None)
        if number is not None:
            layers[module] = int(number)
    return layers


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


class AttentionRecorder:
    """Context that records chosen layers of one model.

    Args:
        model: any transformers model whose attention goes through `AttentionInterface`, wrapped or not.
        layers: numbers of the layers to record, from 0.

    After the context `records` holds one `RecordedAttention` a layer, in the order asked for.

    Raises (on leaving the context):
        ValueError: a layer that did no softmax attention through the interface, or did it more than once.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int]):
        self.layers = list(layers)
        self._layer_of = layer_of_modules(model)
        self._implementations = _implementations(model)
        self._by_layer: dict[int, RecordedAttention] = {}
        self._visits: dict[int, int] = {}
        self._previous: dict[str, Callable | None] = {}

    @property
    def records(self) -> list[RecordedAttention]:
        return [self._by_layer[layer] for layer in self.layers]

    def __enter__(self) -> AttentionRecorder:
        self._by_layer, self._visits, self._previous = {}, {}, {}
        for name in self._implementations:
            self._previous[name] = AttentionInterface._global_mapping.get(name)
            AttentionInterface.register(name, self._recording(self._previous[name]))
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        for name, previous in self._previous.items():
            if previous is None:  # "eager" has no entry of its own: each model file brings its function
                AttentionInterface._global_mapping.pop(name, None)
            else:
                AttentionInterface.register(name, previous)
        if exception_type is None:
            self._check()

    def release(self) -> None:
        """Forget the tensors, so that nothing of the last batch stays in memory."""
        self._by_layer = {}

    def _recording(self, function: Callable | None) -> Callable:
        def record_and_attend(module, query, key, value, attention_mask=None, **kwargs):
            layer = self._layer_of.get(module)
            if layer is not None:
                self._visits[layer] = self._visits.get(layer, 0) + 1
                if layer in self.layers:
                    scaling = kwargs.get("scaling")
                    self._by_layer[layer] = RecordedAttention(
                        query=_as_attended(query),
                        key=_as_attended(key),
                        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
                        softcap=kwargs.get("softcap"),
                        window=kwargs.get("sliding_window"),
                    )
            attend = function or _eager_function(module)
            return attend(module, query, key, value, attention_mask, **kwargs)

        return record_and_attend

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


def _implementations(model: nn.Module) -> list[str]:
    """Attention implementations named in the configs of a model and its submodules."""
    names = []
    for module in model.modules():
        name = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if isinstance(name, str) and name not in names:
            names.append(name)
    return names


def _eager_function(module: nn.Module) -> Callable:
    """The eager attention of the file that defines the module's class: what transformers falls back to."""
    for cls in type(module).__mro__:
        function = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if function is not None:
            return function
    raise ValueError(
        f"{type(module).__name__} runs eager attention, but its file defines no `eager_attention_forward`. "
        "Load the model with `attn_implementation='sdpa'`."
    )
