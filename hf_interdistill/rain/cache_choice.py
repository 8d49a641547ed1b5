"""Which cache a model gets."""

from __future__ import annotations

import inspect
import logging
import math
from weakref import WeakKeyDictionary

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from .cache import Feed, TreeCache
from .copying import CopyingCache
from .heads import LOCK, is_compiled
from .lines import SPLIT_COST
from .split_attention import can_split

logger = logging.getLogger(__name__)

_MASKED_ATTENTION = ("sdpa", "eager")
_PROBED: WeakKeyDictionary = WeakKeyDictionary()  # model -> {circumstances -> why it cannot read a tree, or None}


def build_cache(model, rows: int) -> TreeCache | CopyingCache:
    """A `TreeCache` if the model allows it, else a `CopyingCache`, which is said once a model.

    Args:
        model: a causal LM. rows: prompts held at once.
    """
    with LOCK:
        return _choose_cache(model, rows)


def _choose_cache(model, rows: int) -> TreeCache | CopyingCache:
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
        return CopyingCache(model, rows)
    return TreeCache(model, rows, SPLIT_COST if _splits(model, known, key) else None)


def _splits(model, known: dict, key: tuple) -> bool:
    """Whether a model may attend in two parts. Code that was compiled for one attention would be compiled again."""
    if not can_split(model) or is_compiled(model):
        return False
    if ("split", key) not in known:
        known["split", key] = _trial(model, split_cost=-math.inf)
    return known["split", key] is None


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
    return _trial(model, split_cost=None)


def _trial(model, split_cost: float | None) -> str | None:
    """What is wrong with the logits of a small tree, or `None`."""
    try:
        cache = TreeCache(model, 2, split_cost)
        tokens = [token % model.config.get_text_config().vocab_size for token in (5, 7, 11, 13, 17, 19)]
        (root,) = cache.read([Feed(1, None, tokens[:2])])
        *_, branch = cache.read(
            [Feed(1, root.handle, [tokens[2], tokens[2]]), Feed(1, root.handle, tokens[3:5]), Feed(1, 1, tokens[5:])]
        )
        ids = torch.tensor([[*tokens[:2], *tokens[3:]]], device=model.device)
        with torch.no_grad():
            separate = model(input_ids=ids).logits[0, -1].float()
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        return f"a trial failed ({type(error).__name__}: {error})"
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    difference = (branch.logits - separate).abs().max() / separate.abs().max().clamp(min=1e-6)
    return None if difference < tolerance else "its logits in a tree differ from those of separate sequences"
