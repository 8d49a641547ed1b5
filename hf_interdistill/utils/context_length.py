"""How many tokens a model can read."""

from __future__ import annotations

from typing import Any

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


def has_position_table(model: nn.Module) -> bool:
    """Whether positions are rows of a table (GPT-2, BERT), so that a longer row cannot be read at all.

    Other models compute positions (rotary, ALiBi), and read longer rows without having learned to.
    """
    positions = getattr(text_config(model), "max_position_embeddings", None)
    if positions is None:
        return False
    get_tokens: Any = getattr(model, "get_input_embeddings", None)
    tokens = None if get_tokens is None else get_tokens()
    return any(
        isinstance(module, nn.Embedding)
        and module is not tokens
        and (name.split(".")[-1] == "wpe" or "position" in name.split(".")[-1])
        for name, module in model.named_modules()
    )


def check_row_length(model: nn.Module, length: int, what: str) -> str | None:
    """A warning if the longest row has more tokens than the model has positions; `None` if it fits.

    Args:
        model: the model. length: tokens of the longest row. what: what the row is, for the message (`A text`).

    Raises:
        ValueError: the model has a table of positions, and cannot read the row.
    """
    limit = context_length(model)
    if limit is None or length <= limit:
        return None
    message = f"{what} has {length} tokens, more than the {limit} positions of {type(model).__name__}"
    if has_position_table(model):
        raise ValueError(
            f"{message}, which has a table of them and cannot read more. Set `max_length` to {limit} or less, leave "
            "such texts out, or use a model with more positions."
        )
    return (
        f"{message}: it was not trained on texts of this length, and its rewards of them mean little. Set "
        f"`max_length` to {limit} or less, or use a model with more positions."
    )


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
