"""Forward passes as CUDA graphs.

A pass of a small model is bound by the launch of its kernels; a graph launches all of them at once. What it works on
lies where it lay when it was captured: ids, positions, slots and mask in one buffer, keys and values in the pool. So
there is a graph for each shape of a pass, and none outlives its pool or the model's weights; weights that change in
place are seen. There are few shapes, for padding costs less than another capture.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as torch_modules
from torch.utils._python_dispatch import TorchDispatchMode

from .cuda_capture import CAPTURES
from .layers import Plan, SlotLayer

logger = logging.getLogger(__name__)

WIDTHS = (16, 64, 256, 512)  # tokens of the line, padding among them
SEEN = (1024, 4096, 16_384)  # slots that it sees, likewise
_MOST_COMPARISONS = 2**22  # tokens times slots: from here on the arithmetic takes longer than the launches
_USES = 2  # a shape is captured when it comes so often: a capture costs as much as a few passes
_SAID: WeakKeyDictionary = WeakKeyDictionary()  # model -> reasons that were given


@dataclass(frozen=True)
class Shape:
    """What passes of one graph have in common: tokens of the line, its last ones whose logits are kept, slots that it
    sees, and the token ids whose logits are wanted (`None`: all)."""

    width: int
    keep: int
    seen: int
    columns: tuple[int, ...] | None


class _Pass:
    """What one graph reads: a buffer on the device, filled by one copy."""

    def __init__(self, shape: Shape, capacity: int, device: torch.device):
        width, seen = shape.width, shape.seen
        numbers = 8 * (3 * width + seen)
        with torch.inference_mode(False):  # else nothing could be written once that mode is left
            self.buffer = torch.zeros(numbers + width * seen, dtype=torch.uint8, device=device)
            lines = self.buffer[:numbers].view(torch.int64).unsqueeze(0)
            self.columns = None if shape.columns is None else torch.tensor(shape.columns, device=device)
        self.ids, self.positions, slots, fetched = lines.split([width, width, width, seen], dim=1)
        self.mask = self.buffer[numbers:].view(torch.bool).view(1, 1, width, seen)
        self.plan = Plan(slots[0], fetched, capacity)
        self.replay: Callable[[], torch.Tensor] | None = None

    def load(self, laid: dict[str, np.ndarray]) -> None:
        parts = [laid[name].ravel().view(np.uint8) for name in ("ids", "positions", "slots", "seen", "mask")]
        self.buffer.copy_(torch.from_numpy(np.concatenate(parts)))


class Graphs:
    """The graphs of one cache. It holds no model and no weights.

    Attributes:
        failure: why a capture or a replay failed, after which all passes are eager; `None` if none did.
    """

    def __init__(self):
        self.failure: str | None = None
        self._facts: list | None = None
        self._reason: str | None = None
        self._uses: Counter = Counter()
        self._passes: dict[Shape, _Pass] = {}
        self._capture: Callable | None = None

    def __len__(self) -> int:
        return len(self._passes)

    def shape(
        self, model, layers: Sequence[SlotLayer], tokens: int, ends: int, seen: int, columns: torch.Tensor | None
    ) -> Shape | None:
        """The shape in which a pass is to be replayed (see `read`); `None`: it is to be read eagerly.

        Args:
            model: a causal LM. layers: its keys and values, as wide as the pool.
            tokens: of the pass. ends: feeds. seen: slots that they see. columns: as in `TreeCache.read`.
        """
        width, length = _at_least(tokens, WIDTHS), _at_least(seen, SEEN)
        is_worth_it = width is not None and length is not None and width * length <= _MOST_COMPARISONS
        if self.failure or not is_worth_it:
            return None
        facts = _facts(model, layers)
        if facts != self._facts:
            self._drop()
            self._facts, self._reason = facts, why_not(model)
        if self._reason:
            say(model, self._reason)
            return None
        wanted = None if columns is None else tuple(columns.tolist())
        shape = Shape(width, _at_least(ends, WIDTHS), length, wanted)
        self._uses[shape] += 1
        return shape if self._uses[shape] >= _USES else None

    def read(
        self, model, shape: Shape, laid: dict[str, np.ndarray], capacity: int, forward: Callable
    ) -> torch.Tensor | None:
        """Logits `(1, shape.keep, vocabulary or columns)` of a pass; they are the graph's, and the next pass with it
        writes over them. `None`, which is said, if it cannot be captured.

        Args:
            laid: ids, positions and slots `(1, shape.width)`, seen `(1, shape.seen)`, mask `(1, 1, shape.width,
                shape.seen)`. capacity: slots of the pool.
            forward: `forward(ids, positions, mask, plan, keep, columns) -> logits`, on tensors of the device.
        """
        try:
            if shape not in self._passes:
                self._passes[shape] = self._captured(model, shape, laid, capacity, forward)
            own = self._passes[shape]
            own.load(laid)
            return own.replay()
        except RuntimeError as error:
            self._drop()
            said = next(iter(str(error).splitlines()), "")
            self.failure = f"a capture or its replay failed ({type(error).__name__}: {said})"
            say(model, self.failure)
            return None

    def _captured(self, model, shape: Shape, laid: dict[str, np.ndarray], capacity: int, forward: Callable) -> _Pass:
        new = _Pass(shape, capacity, model.device)
        new.load(laid)

        def run() -> torch.Tensor:
            return forward(new.ids, new.positions, new.mask, new.plan, shape.keep, new.columns)

        if self._capture is None:
            with _Watch(model.device):
                run()
            self._capture = CAPTURES[model.device.type](model.device)
        new.replay = self._capture(run)
        return new

    def _drop(self) -> None:
        self._passes.clear()
        self._uses.clear()
        self._capture = None


class _Watch(TorchDispatchMode):
    """Raises `RuntimeError` where a pass waits for its device or copies to it, in this thread: a failed capture may
    leave torch's allocator and streams in disorder, and this leaves nothing."""

    _WAITING = frozenset((torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape))
    _BY_INDEX = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self._BY_INDEX:
            waits = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        else:
            waits = not self._WAITING.isdisjoint(func.tags)
        result = func(*args, **(kwargs or {}))
        copies = isinstance(result, torch.Tensor) and self._is_copy(name, result, args)
        if waits or copies:
            raise RuntimeError(f"the model waits for its device in `{name}`")
        return result

    def _is_copy(self, name: str, result: torch.Tensor, args: Sequence) -> bool:
        if name == "lift_fresh":  # torch.tensor(..., device=...)
            return result.device.type != "cpu"
        source = args[1] if name == "copy_" else args[0] if name == "_to_copy" else result
        return source.device != result.device


def why_not(model) -> str | None:
    """Why a model's passes cannot be replayed; `None` if nothing is in the way. The last word has a trial."""
    device = model.device
    if device.type not in CAPTURES:
        return f"the model is on {device}, and graphs are of what a CUDA device does"
    tensors = [*chain(model.parameters(), model.buffers())]
    elsewhere = {each.device for each in tensors} - {device}
    if elsewhere:
        return f"its weights are on {', '.join(sorted(map(str, {device, *elsewhere})))}, and a graph is of one device"
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        return "its weights are quantized"
    if others := {type(each) for each in tensors} - {torch.Tensor, nn.Parameter}:
        return f"its weights are of type {', '.join(sorted(kind.__name__ for kind in others))}"
    if model.training:
        return "the model is in training mode"
    if torch.is_autocast_enabled(device.type):
        return "autocast is on"
    if torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks:
        return "all modules have a forward hook, which a replay would not call"
    for name, module in model.named_modules():
        what = f"module `{name}`" if name else "the model"
        if "forward" in vars(module):
            return f"the `forward` of {what} was replaced, and a replay would not call it"
        if any(map(_is_foreign, chain(module._forward_hooks.values(), module._forward_pre_hooks.values()))):
            return f"{what} has a forward hook, which a replay would not call"
        if module._compiled_call_impl is not None or "_orig_mod" in module._modules:
            return f"{what} is compiled"
    return "the model is compiled" if is_compiled(model) else None


def _is_foreign(hook: Callable) -> bool:
    """Whether a hook is none of transformers', which do nothing unless hidden states are asked for."""
    return getattr(hook, "__module__", None) != "transformers.utils.output_capturing"


def say(model, reason: str) -> None:
    """Warn that passes are eager, once a model and reason."""
    said = _SAID.setdefault(model, set())
    if reason not in said:
        said.add(reason)
        logger.warning(
            f"RAIN reads with {type(model).__name__} without CUDA graphs, and so is slower: {reason}. "
            "`cuda_graphs=False` in the RainConfig says that this is wanted."
        )


def _facts(model, layers: Sequence[SlotLayer]) -> list:
    """What graphs depend on, cheap enough to look at before every pass."""
    found = [model.config._attn_implementation, model.dtype, model.training]
    found.append(torch.is_autocast_enabled(model.device.type))
    found.append(len(torch_modules._global_forward_hooks) + len(torch_modules._global_forward_pre_hooks))
    for layer in layers:
        found += (layer.keys.data_ptr(), layer.values.data_ptr())
    modules = [model]
    for module in modules:  # not `model.modules()`, which takes longer than all of the rest
        parts = vars(module)
        modules.extend(each for each in parts["_modules"].values() if each is not None)
        found += ("forward" in parts, "_compiled_call_impl" in parts)
        found += (len(parts["_forward_hooks"]), len(parts["_forward_pre_hooks"]))
        for tensor in chain(parts["_parameters"].values(), parts["_buffers"].values()):
            if tensor is not None:
                found.append(tensor.data_ptr())
    return found


def _at_least(count: int, sizes: Sequence[int]) -> int | None:
    """The first of ascending sizes that is no less."""
    return next((size for size in sizes if size >= count), None)


def is_compiled(model) -> bool:
    """Whether a model runs code that was compiled for its modules as they are."""
    return hasattr(model.forward, "_torchdynamo_orig_callable") or model._compiled_call_impl is not None
