"""Records queries and keys before rotary positions.

Model files of transformers rotate queries and keys in a function `apply_rotary_pos_emb(query, key, cos, sin)` of their
own and pass the result to attention. Inside the context that function is wrapped, to keep its arguments.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import wraps

import torch
from torch import nn

from hf_interdistill.interaction.attention.interceptor import layer_of_modules
from hf_interdistill.interaction.attention.recorder import AttentionRecorder

_NAME = "apply_rotary_pos_emb"


class RotaryInterceptor:
    """Context that keeps queries and keys from before rotary positions.

    Args:
        model: a transformers model with rotary positions.

    Raises:
        ValueError: no model file of the model has such a function.
    """

    def __init__(self, model: nn.Module):
        self._files = _files(model)
        if not self._files:
            raise ValueError(
                f"`alignment_rope` is 'before', but {type(model).__name__} has no rotary positions. Use 'after'."
            )
        self._name = type(model).__name__
        self._last = threading.local()  # a model in another thread may use the same file
        self._originals: list[Callable] = []

    def __enter__(self) -> RotaryInterceptor:
        self._originals = [getattr(file, _NAME) for file in self._files]
        for file, rotate in zip(self._files, self._originals, strict=True):
            setattr(file, _NAME, self._wrap(rotate))
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        for file, rotate in zip(self._files, self._originals, strict=True):
            setattr(file, _NAME, rotate)
        self._last.call = None

    def before(self, layer: int, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Query and key of an attention call as they were before rotation.

        Args:
            layer: number of the layer, for the error.
            query, key: arguments of the attention call.

        Raises:
            ValueError: they are not the result of the last rotation.
        """
        inputs, rotated = getattr(self._last, "call", None) or ((), ())
        is_last = len(rotated) == 2 and rotated[0] is query and rotated[1] is key
        if not is_last or not all(isinstance(each, torch.Tensor) for each in inputs):
            raise ValueError(
                f"`alignment_rope` is 'before', but the queries and keys of layer {layer} of {self._name} are not the "
                "output of its rotary positions (it rotates only a part of each, or has none). Use 'after', or align "
                "another layer (`student_layers`)."
            )
        return inputs

    def _wrap(self, rotate: Callable) -> Callable:
        @wraps(rotate)
        def rotate_and_keep(*args, **kwargs):
            rotated = rotate(*args, **kwargs)
            self._last.call = (args[:2], rotated) if isinstance(rotated, tuple) else None
            return rotated

        return rotate_and_keep


class RotaryRecorder(AttentionRecorder):
    """`AttentionRecorder` that records queries and keys from before rotary positions.

    Args:
        model, layers: as in `AttentionRecorder`.

    Raises:
        ValueError: as in `AttentionRecorder`; also a model without rotary positions, or a layer whose queries and keys
            are not their output.
    """

    def __init__(self, model: nn.Module, layers):
        super().__init__(model, layers)
        self._rotary = RotaryInterceptor(model)

    def __enter__(self) -> RotaryRecorder:
        self._rotary.__enter__()
        return super().__enter__()

    def __exit__(self, exception_type, exception, traceback) -> None:
        self._rotary.__exit__(exception_type, exception, traceback)
        super().__exit__(exception_type, exception, traceback)

    def record(self, layer: int, query: torch.Tensor, key: torch.Tensor, **kwargs) -> None:
        super().record(layer, *self._rotary.before(layer, query, key), **kwargs)


def _files(model: nn.Module) -> list:
    """Python modules that define the model's layers and a function that rotates queries and keys."""
    classes = {type(module) for module in layer_of_modules(model)}
    names = dict.fromkeys(cls.__module__ for each in classes for cls in each.__mro__)
    return [sys.modules[name] for name in names if callable(getattr(sys.modules.get(name), _NAME, None))]
