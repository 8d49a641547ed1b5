"""The output head of a causal LM, for the tokens that are wanted.

A head is the largest product of a small model. A judge wants the logits of two labels, not of a vocabulary; and a
search wants those of a few tokens, for which a CPU is twice as fast if the weights lie in the order in which it
multiplies them.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import nn

logger = logging.getLogger(__name__)

LOCK = threading.RLock()  # for whoever replaces a part of a model for a while, or looks at what is replaced
_TRIED: WeakKeyDictionary = WeakKeyDictionary()  # model -> whether a narrow head gives the logits of the whole one


class PackedHead:
    """The weights of a head as oneDNN orders them for few rows: a second copy, for float32 on a CPU.

    It is made when it is first wanted and when the weights have changed, and goes with its owner. Source: oneDNN's
    layouts in blocks, by the operators that torch.compile uses for frozen weights.
    """

    def __init__(self):
        self._packed: torch.Tensor | None = None
        self._source: torch.Tensor | None = None  # what was packed; held, so that its address is not given to others
        self._version = 0

    def forward(self, head: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What does the head's work, or `None` where its weights cannot be packed."""
        weight = head.weight
        is_float = weight.device.type == "cpu" and weight.dtype == torch.float32
        if not is_float or torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.enabled:
            return None
        if weight.is_inference() or not _can_pack():  # a tensor of inference mode does not count its changes
            return None
        if not self._is_of(weight):
            self._source, self._version = weight.detach(), weight._version
            self._packed = _pack(self._source)
        packed = self._packed
        return lambda states: _multiply(states, packed, head.bias)

    def _is_of(self, weight: torch.Tensor) -> bool:
        source = self._source
        if source is None or self._version != weight._version:
            return False
        return source.data_ptr() == weight.data_ptr() and source.shape == weight.shape


def _pack(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def _multiply(states: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(states, packed, bias, "none", [], "")


@functools.cache
def _can_pack() -> bool:
    """Whether this build of torch packs weights: the operators are not public, and a trial has the last word."""
    if not torch.backends.mkldnn.is_available():
        return False
    states, weight, bias = torch.eye(3, 4), torch.arange(20.0).view(5, 4), torch.ones(5)
    try:
        return torch.allclose(_multiply(states, _pack(weight), bias), nn.functional.linear(states, weight, bias))
    except (AttributeError, RuntimeError, TypeError) as error:
        logger.info(f"The output head is multiplied as it is, for torch {torch.__version__} does not pack it: {error}")
        return False


@contextmanager
def head_for(model, columns: torch.Tensor | None, packed: PackedHead | None = None) -> Iterator[bool]:
    """While it lasts, the model's head does what is wanted and no more, where that can be had.

    What a model does with its logits (a scale, a soft cap) is done as ever, for only the head itself is replaced.

    Args:
        model: a causal LM. columns: token ids whose logits are wanted, or `None` for all.
        packed: gives all logits by packed weights, where they can be packed. It is not used for `columns`: judges keep
            their caches between calls, and should not keep weights.

    Yields:
        Whether the logits will be those of `columns`; otherwise they are of the whole vocabulary.
    """
    head = model.get_output_embeddings()
    if not _is_plain(model):
        yield False
    elif columns is not None and _can_be_narrow(model):
        with _doing(head, _narrow(head, columns)):
            yield True
    elif columns is None and packed is not None and (forward := packed.forward(head)) is not None:
        with _doing(head, forward):
            yield False
    else:
        yield False


@contextmanager
def _doing(head: nn.Linear, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Replace what the head does in this thread; others that use the model meanwhile get the whole head."""
    with LOCK:
        owner, plain = threading.get_ident(), head.forward
        head.forward = lambda states: (forward if threading.get_ident() == owner else plain)(states)
        try:
            yield
        finally:
            del head.forward


def _narrow(head: nn.Linear, columns: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    columns = columns.to(head.weight.device)
    weight, bias = head.weight[columns], None if head.bias is None else head.bias[columns]
    return lambda states: nn.functional.linear(states, weight, bias)


def is_compiled(model) -> bool:
    """Whether a model runs code that was compiled for its modules as they are."""
    return hasattr(model.forward, "_torchdynamo_orig_callable") or model._compiled_call_impl is not None


def _is_plain(model) -> bool:
    """No adapter, quantization, hook or compiled code that another head would break or go round."""
    head = model.get_output_embeddings()
    has_hooks = bool(getattr(head, "_forward_hooks", None) or getattr(head, "_forward_pre_hooks", None))
    return type(head) is nn.Linear and "forward" not in vars(head) and not has_hooks and not is_compiled(model)


def _can_be_narrow(model) -> bool:
    """Whether a trial on a few tokens gives what the whole head gives."""
    if model not in _TRIED:
        _TRIED[model] = _is_same(model)
    return _TRIED[model]


@torch.no_grad()
def _is_same(model) -> bool:
    """A model may do something with single tokens of its vocabulary."""
    ids = torch.tensor([[1, 2, 3]], device=model.device)
    whole = model(input_ids=ids).logits[0, -1].float()
    columns = torch.tensor([0, whole.shape[-1] - 1], device=whole.device)
    head = model.get_output_embeddings()
    try:
        with _doing(head, _narrow(head, columns)):
            narrow = model(input_ids=ids).logits[0, -1].float()
    except (IndexError, ValueError, RuntimeError):
        return False
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    return narrow.shape == columns.shape and torch.allclose(narrow, whole[columns], atol=tolerance, rtol=tolerance)
