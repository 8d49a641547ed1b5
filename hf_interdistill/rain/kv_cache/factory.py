"""Chooses the cache of a model; trials on a few tokens decide in the end."""

from __future__ import annotations

import inspect

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from . import cuda_graphs as graphs_module
from .capabilities import Capabilities, capabilities_of
from .copy_cache import CopyCache
from .cuda_capture import CAPTURES
from .cuda_graphs import CudaGraphs, warn_eager
from .forward import ForwardInput
from .tree_cache import TreeCache

_MASKED_ATTENTION = ("sdpa", "eager")
_TRIAL_TOKENS = (5, 7, 11, 13, 17, 19, 23, 29)


def build_cache(model, rows: int, cuda_graphs: bool | None = None) -> TreeCache | CopyCache:
    """A `TreeCache` if the model allows it, else a `CopyCache`, with a warning once for each model.

    Args:
        model: a causal LM. rows: prompts held at once. cuda_graphs: see `RainConfig`.

    Raises:
        ValueError: no cache gives the model's own logits; or `cuda_graphs` is true, and its passes cannot be replayed.
    """
    known = capabilities_of(model)
    # With dropout no two passes are alike, so a model in training mode is tried again when it is in evaluation mode.
    circumstances = (model.config._attn_implementation, model.dtype, model.training)
    reason = known.unsupported_reason(("tree", *circumstances), lambda: _tree_reason(model))
    if reason is None:
        return TreeCache(model, rows, _build_graphs(model, known, circumstances, cuda_graphs))
    known.warn_once(
        f"RAIN branches by copying keys and values with {type(model).__name__}, which costs more memory and "
        f"time than one shared tree: {reason}."
    )
    if cuda_graphs:
        _refuse_graphs(f"RAIN branches by copying with this model: {reason}")
    _require_right_logits(
        model, known.unsupported_reason(("copy", *circumstances), lambda: _trial(model, CopyCache(model, 2)))
    )
    return CopyCache(model, rows)


def _build_graphs(model, known: Capabilities, circumstances: tuple, wanted: bool | None) -> CudaGraphs | None:
    """Graphs, where they are wanted and possible; otherwise a warning gives the reason on devices that have graphs."""
    if wanted is False:
        return None
    reason = graphs_module.unsupported_reason(model)
    if reason is None:
        reason = known.unsupported_reason(("graphs", *circumstances), lambda: _trial_of_graphs(model))
    if reason is None:
        return CudaGraphs()
    if wanted:
        _refuse_graphs(reason)
    if model.device.type in CAPTURES:
        warn_eager(model, reason)
    return None


def _refuse_graphs(reason: str) -> None:
    raise ValueError(
        f"`cuda_graphs` is True, but the passes of this model cannot be replayed: {reason}. Set it to None, for "
        "graphs wherever they are possible."
    )


def _tree_reason(model) -> str | None:
    """Why a model cannot run a tree in one row; `None` if it can."""
    attention = getattr(model.config, "_attn_implementation", None)
    if attention not in _MASKED_ATTENTION:
        return f"its attention implementation is {attention!r}, and a tree needs 'sdpa' or 'eager'"
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if kinds != {DynamicLayer}:
        return "not all of its layers have full attention"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "its forward takes no position_ids"
    return _trial(model, TreeCache(model, 2))


def _require_right_logits(model, reason: str | None) -> None:
    """Raise `ValueError` for a model that no cache serves, with the `reason`."""
    if reason is None:
        return
    advice = "put it in evaluation mode (`model.eval()`)" if model.training else "use another model"
    raise ValueError(
        f"RAIN would write different tokens than {type(model).__name__} itself: with keys and values kept "
        f"between passes, {reason}. Every branch of the search continues from what was kept, so this model cannot "
        f"be searched: {advice}."
    )


def _trial_of_graphs(model) -> str | None:
    """As `_trial`, with passes replayed: the third is captured, and the fourth replayed with other inputs."""
    graphs = CudaGraphs()
    reason = _trial(model, TreeCache(model, 2, graphs))
    if reason is None and (graphs.failure or not len(graphs)):
        return graphs.failure or "a trial captured nothing"
    return reason


def _trial(model, cache: TreeCache | CopyCache) -> str | None:
    """What is wrong with the logits of a small tree, run step by step with the cache, or `None`."""
    try:
        tokens = [token % model.config.get_text_config().vocab_size for token in _TRIAL_TOKENS]
        root = ForwardInput(1, None, tokens[:2])
        handle = cache.forward([root])[root].handle
        parent = ForwardInput(1, handle, tokens[3:5])
        leaf = ForwardInput(1, parent, tokens[5:6])
        output = cache.forward([ForwardInput(1, handle, [tokens[2], tokens[2]]), parent, leaf])[leaf]
        for token in tokens[6:]:
            leaf = ForwardInput(1, output.handle, [token])
            output = cache.forward([leaf])[leaf]
        ids = torch.tensor([[*tokens[:2], *tokens[3:]]], device=model.device)
        with torch.no_grad():
            separate = model(input_ids=ids).logits[0, -1].float()
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        return f"a trial failed ({type(error).__name__}: {error})"
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    difference = (output.logits - separate).abs().max() / separate.abs().max().clamp(min=1e-6)
    return None if difference < tolerance else "its logits differ from those of separate sequences"
