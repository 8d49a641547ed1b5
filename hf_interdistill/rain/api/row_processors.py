"""Logits processors of one prompt: in a search the rows of a call are branches of one text, not rows of a batch."""

from __future__ import annotations

import copy

import torch
from transformers.generation import PrefixConstrainedLogitsProcessor

# Attributes of logits processors that count from the padded start of a row.
_LENGTH_ATTRIBUTES = ("prompt_length_to_skip", "min_length", "max_length", "begin_index")
_PADDING_ATTRIBUTE = "prompt_ignore_length"  # a tensor with the padding of each row; prompts here have no padding


class RowProcessor:
    """Calls a batch's logits processor for one row of it, whatever the processor does with the numbers of rows.

    Args:
        processor: called with ids `(rows, length)` and scores `(rows, vocabulary)`.
        row: the row of the prompt. rows: rows of the batch.
    """

    def __init__(self, processor, row: int, rows: int):
        self.processor, self.row, self.rows = processor, row, rows

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Processed scores of branches, `(branches, vocabulary)`: each branch stands in every row of a call."""
        processed = [
            self.processor(ids[i : i + 1].repeat(self.rows, 1), scores[i : i + 1].repeat(self.rows, 1))[self.row]
            for i in range(len(ids))
        ]
        return torch.stack(processed)


def processor_of_row(processor, row: int, rows: int, padding: int):
    """A logits processor that sees branches of a prompt as `generate` would show it the prompt's row.

    Args:
        processor: of the batch. row: the row of the prompt. rows: rows of the batch. padding: of the row.
    """
    if isinstance(processor, PrefixConstrainedLogitsProcessor):
        return _with_prompt_number(processor, row)
    moved = _without_padding(processor, padding)
    is_own = type(processor).__module__.split(".")[0] == "transformers"
    return moved if is_own else RowProcessor(moved, row, rows)  # transformers' own treat all rows alike


def _with_prompt_number(processor: PrefixConstrainedLogitsProcessor, row: int) -> PrefixConstrainedLogitsProcessor:
    """The processor of `prefix_allowed_tokens_fn` that hands over the number of the prompt, whatever the branch."""
    copied, function = copy.copy(processor), processor._prefix_allowed_tokens_fn
    number = row // processor._num_beams
    copied._num_beams = 1
    copied._prefix_allowed_tokens_fn = lambda _, ids: function(number, ids)
    return copied


def _without_padding(processor, padding: int):
    """A logits processor that counts from the first token of the prompt, not from the padded start of its row."""
    changes = {
        name: getattr(processor, name) - padding
        for name in _LENGTH_ATTRIBUTES
        if isinstance(getattr(processor, name, None), int)
    }
    if isinstance(getattr(processor, _PADDING_ATTRIBUTE, None), torch.Tensor):
        changes[_PADDING_ATTRIBUTE] = None
    if not changes:
        return processor
    copied = copy.copy(processor)
    for name, value in changes.items():
        setattr(copied, name, value)
    return copied
