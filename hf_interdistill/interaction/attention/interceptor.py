"""Steps between a model and its own attention function, while a context lasts.

Works through `AttentionInterface`, the extension point of transformers: inside the context, the function registered
for the model's attention implementation is one that does something more and calls the model's own. The name, and with
it the mask that transformers builds, stays the same, so padding and causality are untouched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from torch import nn
from transformers import AttentionInterface


def layer_of_modules(model: nn.Module) -> dict[nn.Module, int]:
    """The layer that each submodule belongs to: the first number in its dotted name (`model.layers.3.self_attn`)."""
    layers = {}
    for name, module in model.named_modules():
        number = next((part for part in name.split(".") if part.isdigit()), None)
        if number is not None:
            layers[module] = int(number)
    return layers


class AttentionInterceptor:
    """Context in which the attention calls of one model go through `intercept`. Contexts nest: the inner one is asked
    first.

    Args:
        model: any transformers model whose attention goes through `AttentionInterface`, wrapped or not.
    """

    def __init__(self, model: nn.Module):
        self._layer_of = layer_of_modules(model)
        self._implementations = _implementations(model)
        self._previous: dict[str, Callable | None] = {}

    def intercept(self, layer: int, attend: Callable, query, key, value, attention_mask, **kwargs):
        """What happens in place of a layer's attention.

        Args:
            layer: its number. attend: its own function, of what follows.
            query, key, value, attention_mask, **kwargs: as the model gives them.
        """
        raise NotImplementedError

    def __enter__(self):
        self._previous = {}
        for name in self._implementations:
            self._previous[name] = AttentionInterface._global_mapping.get(name)
            AttentionInterface.register(name, self._intercepting(self._previous[name]))
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        for name, previous in self._previous.items():
            if previous is None:  # "eager" has no entry of its own: each model file brings its function
                AttentionInterface._global_mapping.pop(name, None)
            else:
                AttentionInterface.register(name, previous)

    def _intercepting(self, function: Callable | None) -> Callable:
        def attend_through(module, query, key, value, attention_mask=None, **kwargs):
            own = function or _eager_function(module)
            layer = self._layer_of.get(module)
            if layer is None:  # a module of another model
                return own(module, query, key, value, attention_mask, **kwargs)

            def attend(query, key, value, attention_mask, **kwargs):
                return own(module, query, key, value, attention_mask, **kwargs)

            return self.intercept(layer, attend, query, key, value, attention_mask, **kwargs)

        return attend_through


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
