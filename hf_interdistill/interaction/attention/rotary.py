"""Queries and keys as they are before rotary positions.

Model files of transformers turn them by a function `apply_rotary_pos_emb(query, key, cos, sin)` of their own and hand
what it gives to the attention; inside the context the function notes what it was given.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import wraps

import torch
from torch import nn

from .interceptor import layer_of_modules

_NAME = "apply_rotary_pos_emb"


class RotaryInterceptor:
    """Context that notes queries and keys before they are turned.

    Args:
        model: a transformers model with rotary positions.

    Raises:
        ValueError: no file of the model has such a function.
    """

    def __init__(self, model: nn.Module):
        self._files = _files(model)
        if not self._files:
            raise ValueError(
                f"`alignment_rope` is 'before', but {type(model).__name__} has no rotary positions that its queries "
                "and keys could be taken before. Use 'after'."
            )
        self._name = type(model).__name__
        self._noted = threading.local()  # another thread's model may be of the same file
        self._previous: list[Callable] = []

    def __enter__(self) -> RotaryInterceptor:
        self._previous = [getattr(file, _NAME) for file in self._files]
        for file, turn in zip(self._files, self._previous, strict=True):
            setattr(file, _NAME, self._noting(turn))
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        for file, turn in zip(self._files, self._previous, strict=True):
            setattr(file, _NAME, turn)
        self._noted.last = None

    def before(self, layer: int, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What an attention's query and key were before they were turned.

        Args:
            layer: number of the layer, for the error. query, key: as the attention got them.

        Raises:
            ValueError: they are not what was last turned.
        """
        given, turned = getattr(self._noted, "last", None) or ((), ())
        is_last = len(turned) == 2 and turned[0] is query and turned[1] is key
        if not is_last or not all(isinstance(each, torch.Tensor) for each in given):
            raise ValueError(
                f"`alignment_rope` is 'before', but layer {layer} of {self._name} does not compare its queries and "
                "keys as its rotary positions leave them (it turns only a part of each, or has none), so those from "
                "before are not to be had. Use 'after', or align another layer (`student_layers`)."
            )
        return given

    def _noting(self, turn: Callable) -> Callable:
        @wraps(turn)
        def noting(*args, **kwargs):
            turned = turn(*args, **kwargs)
            self._noted.last = (args[:2], turned) if isinstance(turned, tuple) else None
            return turned

        return noting


def _files(model: nn.Module) -> list:
    """Modules of Python that define the model's layers and turn queries and keys."""
    classes = {type(module) for module in layer_of_modules(model)}
    names = dict.fromkeys(cls.__module__ for each in classes for cls in each.__mro__)
    return [sys.modules[name] for name in names if callable(getattr(sys.modules.get(name), _NAME, None))]
