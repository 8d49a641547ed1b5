"""Forward passes as CUDA graphs.

A pass of a small model is bound by kernel launches; a graph launches all kernels at once. It works on fixed addresses:
ids, positions, slots and mask in one buffer, keys and values in the pool. So there is one graph for each shape of a
pass, and none outlives its pool or the model's weights; weights that change in place are seen. Shapes are few, since
padding costs less than another capture. The gain over eager passes was not measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as torch_modules
from torch.utils._python_dispatch import TorchDispatchMode

from .batching import Batch
from .capabilities import capabilities_of
from .cuda_capture import CAPTURES
from .layers import AttentionMetadata, SlotLayer

WIDTHS = (16, 64, 256, 512)  # tokens of the batch row, padding included
GATHERED = (1024, 4096, 16_384)  # slots that it attends to, likewise
_MAX_ATTENTION = 2**22  # tokens times slots: beyond it arithmetic takes longer than launches
_MIN_USES = 2  # uses of a shape before it is captured: a capture costs as much as a few passes


@dataclass(frozen=True)
class Shape:
    """What passes of one graph have in common.

    Args:
        width: tokens of the batch row. keep: its last tokens, whose logits are kept. gathered: slots it attends to.
        token_ids: whose logits are wanted; `None` for all.
    """

    width: int
    keep: int
    gathered: int
    token_ids: tuple[int, ...] | None


class _StaticInputs:
    """The inputs of one graph: a buffer on the device, filled by one copy."""

    def __init__(self, shape: Shape, capacity: int, device: torch.device):
        width, gathered = shape.width, shape.gathered
        numbers = 8 * (3 * width + gathered)
        with torch.inference_mode(False):  # else nothing could be written once that mode is left
            self.buffer = torch.zeros(numbers + width * gathered, dtype=torch.uint8, device=device)
            rows = self.buffer[:numbers].view(torch.int64).unsqueeze(0)
            self.token_ids = None if shape.token_ids is None else torch.tensor(shape.token_ids, device=device)
        self.input_ids, self.position_ids, slots, gather_slots = rows.split([width, width, width, gathered], dim=1)
        self.mask = self.buffer[numbers:].view(torch.bool).view(1, 1, width, gathered)
        self.metadata = AttentionMetadata(slots[0], gather_slots, capacity)
        self.replay: Callable[[], torch.Tensor]

    def load(self, batch: Batch) -> None:
        parts = [values.ravel().view(np.uint8) for values in vars(batch).values()]
        self.buffer.copy_(torch.from_numpy(np.concatenate(parts)))


class CudaGraphs:
    """The graphs of one cache. It holds no model and no weights.

    Attributes:
        failure: why a capture or a replay failed, after which all passes are eager; `None` if none did.
    """

    def __init__(self):
        self.failure: str | None = None
        self._fingerprint: list | None = None
        self._reason: str | None = None
        self._uses: Counter = Counter()
        self._captured: dict[Shape, _StaticInputs] = {}
        self._capture: Callable | None = None

    def __len__(self) -> int:
        return len(self._captured)

    def shape(
        self, model, layers: Sequence[SlotLayer], num_tokens: int, num_branches: int, gathered: int, token_ids
    ) -> Shape | None:
        """The shape in which a pass is to be replayed; `None` if it is to run eagerly.

        Args:
            model: a causal LM. layers: its keys and values, as large as the pool.
            num_tokens, num_branches: of the pass. gathered: slots that it attends to.
            token_ids: as in `TreeCache.forward`.
        """
        width, length = _round_up(num_tokens, WIDTHS), _round_up(gathered, GATHERED)
        if self.failure or width is None or length is None or width * length > _MAX_ATTENTION:
            return None
        fingerprint = _fingerprint(model, layers)
        if fingerprint != self._fingerprint:
            self._reset()
            self._fingerprint, self._reason = fingerprint, unsupported_reason(model)
        if self._reason:
            warn_eager(model, self._reason)
            return None
        wanted = None if token_ids is None else tuple(token_ids.tolist())
        shape = Shape(width, _round_up(num_branches, WIDTHS) or width, length, wanted)
        self._uses[shape] += 1
        return shape if self._uses[shape] >= _MIN_USES else None

    def replay(self, model, shape: Shape, batch: Batch, capacity: int, forward: Callable) -> torch.Tensor | None:
        """Logits `(1, shape.keep, logits)` of a pass. They are the graph's: the next replay overwrites them. `None`,
        with a warning, if the pass cannot be captured.

        Args:
            batch: one batch row of the shape. capacity: slots of the pool.
            forward: `forward(input_ids, position_ids, mask, metadata, keep, token_ids) -> logits`, on the device.
        """
        try:
            if shape not in self._captured:
                self._captured[shape] = self._capture_pass(model, shape, batch, capacity, forward)
            inputs = self._captured[shape]
            inputs.load(batch)
            return inputs.replay()
        except RuntimeError as error:
            self._reset()
            message = next(iter(str(error).splitlines()), "")
            self.failure = f"a capture or its replay failed ({type(error).__name__}: {message})"
            warn_eager(model, self.failure)
            return None

    def _capture_pass(self, model, shape: Shape, batch: Batch, capacity: int, forward: Callable) -> _StaticInputs:
        new = _StaticInputs(shape, capacity, model.device)
        new.load(batch)

        def run() -> torch.Tensor:
            return forward(new.input_ids, new.position_ids, new.mask, new.metadata, shape.keep, new.token_ids)

        if self._capture is None:
            with _SyncGuard(model.device):
                run()
            self._capture = CAPTURES[model.device.type](model.device)
        new.replay = self._capture(run)
        return new

    def _reset(self) -> None:
        self._captured.clear()
        self._uses.clear()
        self._capture = None


class _SyncGuard(TorchDispatchMode):
    """Raises `RuntimeError` where a pass waits for its device or copies to it, in this thread: a failed capture may
    leave torch's allocator and streams in disorder, and this guard prevents it."""

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


def unsupported_reason(model) -> str | None:
    """Why a model's passes cannot be replayed; `None` if there is no known reason. A trial decides in the end."""
    device = model.device
    if device.type not in CAPTURES:
        return f"the model is on {device}, and only a CUDA device has graphs"
    tensors = [*chain(model.parameters(), model.buffers())]
    elsewhere = {each.device for each in tensors} - {device}
    if elsewhere:
        return f"its weights are on {', '.join(sorted(map(str, {device, *elsewhere})))}, and a graph has one device"
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
    """Whether a hook is not one of transformers', which do nothing unless hidden states are requested."""
    return getattr(hook, "__module__", None) != "transformers.utils.output_capturing"


def warn_eager(model, reason: str) -> None:
    """Warn that passes are eager, once for each model and reason."""
    capabilities_of(model).warn_once(
        f"RAIN runs {type(model).__name__} without CUDA graphs, and so is slower: {reason}. "
        "Set `cuda_graphs=False` in the RainConfig if that is intended."
    )


def _fingerprint(model, layers: Sequence[SlotLayer]) -> list:
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


def _round_up(count: int, sizes: Sequence[int]) -> int | None:
    """The smallest of ascending sizes that is large enough; `None` if none is."""
    return next((size for size in sizes if size >= count), None)


def is_compiled(model) -> bool:
    """Whether a model runs code that was compiled for its present modules."""
    return hasattr(model.forward, "_torchdynamo_orig_callable") or model._compiled_call_impl is not None
