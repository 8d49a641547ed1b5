"""Which cache a model gets."""

from __future__ import annotations

import inspect
import logging
import threading
from weakref import WeakKeyDictionary

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from .copy_cache import CopyingCache
from .cuda_graphs import CAPTURES, Graphs, say, why_not
from .tree_cache import Feed, TreeCache

logger = logging.getLogger(__name__)

_MASKED_ATTENTION = ("sdpa", "eager")
_LOCK = threading.Lock()
_PROBED: WeakKeyDictionary = WeakKeyDictionary()  # model -> {circumstances -> why it cannot read a tree, or None}


def build_cache(model, rows: int, cuda_graphs: bool | None = None) -> TreeCache | CopyingCache:
    """A `TreeCache` if the model allows it, else a `CopyingCache`, which is said once a model.

    Args:
        model: a causal LM. rows: prompts held at once. cuda_graphs: see `RainConfig`.

    Raises:
        ValueError: `cuda_graphs` is true, and the model's passes cannot be replayed.
    """
    with _LOCK:
        return _choose_cache(model, rows, cuda_graphs)


def _choose_cache(model, rows: int, cuda_graphs: bool | None) -> TreeCache | CopyingCache:
    known = _PROBED.setdefault(model, {})
    # With dropout no two readings are alike, so a model in training is tried anew when it has been put in eval mode.
    key = (model.config._attn_implementation, model.dtype, model.training)
    if key not in known:
        known[key] = reason = _why_not_tree(model)
        if reason:
            logger.warning(
                f"RAIN branches by copying keys and values with {type(model).__name__}, which costs more memory and "
                f"time than one shared tree: {reason}."
            )
    if known[key]:
        if cuda_graphs:
            _refuse_graphs(f"RAIN branches by copying with this model: {known[key]}")
        if ("copying", key) not in known:
            known["copying", key] = _trial(model, CopyingCache(model, 2))
        _require_right(model, known["copying", key])
        return CopyingCache(model, rows)
    graphs = _graphs(model, known, key, cuda_graphs)
    return TreeCache(model, rows, graphs)


def _graphs(model, known: dict, key: tuple, wanted: bool | None) -> Graphs | None:
    """Graphs where they are wanted and possible; on a device that has them it is said why not."""
    if wanted is False:
        return None
    reason = why_not(model)
    if reason is None:
        if ("graphs", key) not in known:
            known["graphs", key] = _trial_of_graphs(model)
        reason = known["graphs", key]
    if reason is None:
        return Graphs()
    if wanted:
        _refuse_graphs(reason)
    if model.device.type in CAPTURES:
        say(model, reason)
    return None


def _refuse_graphs(reason: str) -> None:
    raise ValueError(
        f"`cuda_graphs` is True, but passes can only be replayed of a model for which nothing is in the way, and here "
        f"something is: {reason}. Set it to None, for graphs wherever they are possible."
    )


def _why_not_tree(model) -> str | None:
    """Why a model cannot read a tree in one row; `None` if it can. The last word has a trial on a few tokens."""
    attention = getattr(model.config, "_attn_implementation", None)
    if attention not in _MASKED_ATTENTION:
        return f"its attention implementation is {attention!r}, and a tree needs 'sdpa' or 'eager'"
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if kinds != {DynamicLayer}:
        return "not all of its layers have full attention"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "its forward takes no position_ids"
    return _trial(model, TreeCache(model, 2))


def _require_right(model, reason: str | None) -> None:
    """Raise `ValueError` for a model that no cache serves; what is wrong is `reason`."""
    if reason is None:
        return
    mode = "put it in evaluation mode (`model.eval()`)" if model.training else "use another model"
    raise ValueError(
        f"RAIN would write other tokens than {type(model).__name__} itself: with keys and values kept between passes, "
        f"{reason}. Every branch of the search goes on from what was kept, so this model cannot be searched: {mode}."
    )


def _trial_of_graphs(model) -> str | None:
    """As `_trial`, with passes replayed: the third is captured, and the fourth replayed with other inputs."""
    graphs = Graphs()
    reason = _trial(model, TreeCache(model, 2, graphs))
    if reason is None and (graphs.failure or not len(graphs)):
        return graphs.failure or "a trial captured nothing"
    return reason


def _trial(model, cache: TreeCache | CopyingCache) -> str | None:
    """What is wrong with the logits of a small tree, read step by step with the cache, or `None`."""
    try:
        tokens = [token % model.config.get_text_config().vocab_size for token in (5, 7, 11, 13, 17, 19, 23, 29)]
        (root,) = cache.read([Feed(1, None, tokens[:2])])
        *_, branch = cache.read(
            [Feed(1, root.handle, [tokens[2], tokens[2]]), Feed(1, root.handle, tokens[3:5]), Feed(1, 1, tokens[5:6])]
        )
        for token in tokens[6:]:
            (branch,) = cache.read([Feed(1, branch.handle, [token])])
        ids = torch.tensor([[*tokens[:2], *tokens[3:]]], device=model.device)
        with torch.no_grad():
            separate = model(input_ids=ids).logits[0, -1].float()
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        return f"a trial failed ({type(error).__name__}: {error})"
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    difference = (branch.logits - separate).abs().max() / separate.abs().max().clamp(min=1e-6)
    return None if difference < tolerance else "its logits differ from those of separate sequences"
