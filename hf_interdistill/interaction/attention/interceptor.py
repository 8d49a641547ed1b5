"""A context manager that intercepts the attention calls of a model.

It uses `AttentionInterface`, the extension point of transformers. Inside the context, the function registered for the
model's attention implementation is replaced by one that calls `intercept`. The name of the implementation stays the
same, and so does the mask that transformers builds for it: padding and causality are unchanged.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from torch import nn
from transformers import AttentionInterface


def layer_of_modules(model: nn.Module) -> dict[nn.Module, int]:
    """The layer of each submodule: the first number in its dotted name (`model.layers.3.self_attn`)."""
    layers = {}
    for name, module in model.named_modules():
        number = next((part for part in name.split(".") if part.isdigit()), None)
        if number is not None:
            layers[module] = int(number)
    return layers


class AttentionInterceptor:
    """Context in which the attention calls of one model go through `intercept`.

    Contexts nest: the innermost one is called first.

    Args:
        model: any transformers model whose attention goes through `AttentionInterface`, wrapped or not.
    """

    def __init__(self, model: nn.Module):
        self._layer_of = layer_of_modules(model)
        self._implementations = _implementations(model)
        self._previous: dict[str, Callable | None] = {}

    def intercept(self, layer: int, attend: Callable, query, key, value, attention_mask, **kwargs):
        """Called in place of a layer's attention function; returns what that function returns.

        Args:
            layer: number of the layer.
            attend: the layer's own attention function, called with the arguments below.
            query, key, value, attention_mask, **kwargs: the arguments of the attention call.
        """
        raise NotImplementedError

    def __enter__(self):
        self._previous = {}
        for name in self._implementations:
            self._previous[name] = AttentionInterface._global_mapping.get(name)  # type: ignore[assignment]
            AttentionInterface.register(name, self._intercepting(self._previous[name]))
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        for name, previous in self._previous.items():
            if previous is None:  # "eager" has no registry entry: each model file defines its function
                AttentionInterface._global_mapping.pop(name, None)
            else:
                AttentionInterface.register(name, previous)

    def _intercepting(self, function: Callable | None) -> Callable:
        def attend_through(module, query, key, value, attention_mask=None, **kwargs):
            own = function or _eager_function(module)
            layer = self._layer_of.get(module)
            if layer is None:  # the module belongs to another model
                return own(module, query, key, value, attention_mask, **kwargs)

            def attend(query, key, value, attention_mask, **kwargs):
                return own(module, query, key, value, attention_mask, **kwargs)

            return self.intercept(layer, attend, query, key, value, attention_mask, **kwargs)

        return attend_through


def _implementations(model: nn.Module) -> list[str]:
    """Attention implementations that the configs of a model and its submodules name."""
    names = []
    for module in model.modules():
        name = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if isinstance(name, str) and name not in names:
            names.append(name)
    return names


def _eager_function(module: nn.Module) -> Callable:
    """The eager attention function in the file of the module's class, which transformers falls back to."""
    for cls in type(module).__mro__:
        function = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if function is not None:
            return function
    raise ValueError(
        f"{type(module).__name__} runs eager attention, but its model file defines no `eager_attention_forward`. "
        "Load the model with `attn_implementation='sdpa'`."
    )
