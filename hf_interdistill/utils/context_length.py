"""How many tokens a model can read."""

from __future__ import annotations

from torch import nn

from .model_config import text_config

_UNLIMITED = 10**9  # tokenizers without a limit have a huge number in its place


def context_length(model: nn.Module, tokenizer=None) -> int | None:
    """The most tokens that a model can read in one row, or `None` if nothing limits them.

    Args:
        model: any transformers model, wrapped or not. Its limit is `max_position_embeddings` of its (text) config;
            models of the RoBERTa family lose the positions up to the padding token's.
        tokenizer: its `model_max_length` is a limit too, where it has one.
    """
    limits = [_positions(model), getattr(tokenizer, "model_max_length", None)]
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < _UNLIMITED]
    return min(known, default=None)


def _positions(model: nn.Module) -> int | None:
    positions = getattr(text_config(model), "max_position_embeddings", None)
    if positions is None:
        return None
    for name, module in model.named_modules():
        # RoBERTa counts positions from the one after the padding token, and its table has a row for each before it.
        padding = getattr(module, "padding_idx", None)
        if name.split(".")[-1] == "position_embeddings" and padding is not None:
            return positions - padding - 1
    return positions
