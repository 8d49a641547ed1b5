"""Logits processors and stopping criteria of one prompt: the rows of a call are branches of its text, not a batch.

Each branch is shown as `generate` shows the prompt's row: with the padding before it, so that what counts from the
start of a row counts alike.
"""

from __future__ import annotations

import copy

import torch
from transformers.generation import (
    ClassifierFreeGuidanceLogitsProcessor,
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

# They keep a state that follows one text, or need a batch of another size.
_REFUSED = (
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
    ClassifierFreeGuidanceLogitsProcessor,
)


class RowProcessor:
    """A batch's logits processor, for branches of the prompt in one row of it.

    Args:
        processor: called with ids `(rows, length)` and scores `(rows, vocabulary)`.
        row: the row of the prompt. rows: rows of the batch.
        padding: token ids before the prompt, `(padding,)`.

    Raises:
        ValueError: a processor that cannot be used in a search.
    """

    def __init__(self, processor, row: int, rows: int, padding: torch.Tensor):
        if isinstance(processor, _REFUSED):
            raise ValueError(
                f"{type(processor).__name__} follows one text from token to token, but RAIN searches many at a time. "
                "Leave it out, or `watermarking_config` or `guidance_scale` if they made it, or decode without RAIN."
            )
        is_own = _is_of_transformers(processor)
        self.processor = _for_row(processor, row, rows) if is_own else processor
        self.treats_rows_alike = is_own and not isinstance(processor, EncoderRepetitionPenaltyLogitsProcessor)
        self.row, self.rows = (0, 1) if is_own else (row, rows)
        self.padding = padding

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Processed scores of branches, `(branches, vocabulary)`, from their ids without padding."""
        ids = torch.cat([self.padding.to(ids.device).expand(len(ids), -1), ids], dim=1)
        if self.treats_rows_alike:
            return self.processor(ids, scores)
        processed = [
            self.processor(ids[i : i + 1].repeat(self.rows, 1), scores[i : i + 1].repeat(self.rows, 1))[self.row]
            for i in range(len(ids))
        ]
        return torch.stack(processed)


class RowCriterion:
    """A batch's stopping criterion, for texts of the prompt in one row of it.

    Args:
        criterion: called with ids `(rows, length)`; returns `(rows,)`, or one value for all.
        row, rows, padding: as in `RowProcessor`.
    """

    def __init__(self, criterion, row: int, rows: int, padding: torch.Tensor):
        self.criterion, self.padding = criterion, padding
        self.row, self.rows = (0, 1) if _is_of_transformers(criterion) else (row, rows)  # those treat rows alike

    def __call__(self, ids: torch.Tensor, scores=None) -> bool:
        """Whether a text ends, from its ids `(1, tokens)` without padding."""
        ids = torch.cat([self.padding, ids[0].to(self.padding.device)]).repeat(self.rows, 1)
        ends = torch.as_tensor(self.criterion(ids, scores)).flatten()
        return bool(ends[self.row] if len(ends) == self.rows else ends.all())


def _is_of_transformers(each) -> bool:
    return type(each).__module__.split(".")[0] == "transformers"


def _for_row(processor, row: int, rows: int):
    """A processor of transformers that treats all rows as it treats this one."""
    if isinstance(processor, PrefixConstrainedLogitsProcessor):
        return _with_prompt_number(processor, row)
    changes: dict = {}
    if isinstance(processor, RepetitionPenaltyLogitsProcessor):
        ignored = getattr(processor, "prompt_ignore_length", None)
        if isinstance(ignored, torch.Tensor):
            changes["prompt_ignore_length"] = int(ignored[row])
    elif isinstance(processor, EncoderRepetitionPenaltyLogitsProcessor):
        prompts = processor.encoder_input_ids  # one for each prompt, which may have several rows
        changes["encoder_input_ids"] = prompts[row * len(prompts) // rows].unsqueeze(0)
    elif isinstance(processor, EncoderNoRepeatNGramLogitsProcessor):
        changes["generated_ngrams"] = [processor.generated_ngrams[row * processor.batch_size // rows]]
        changes["batch_size"] = 1
    if not changes:
        return processor
    copied = copy.copy(processor)
    for name, value in changes.items():
        setattr(copied, name, value)
    return copied


def _with_prompt_number(processor: PrefixConstrainedLogitsProcessor, row: int) -> PrefixConstrainedLogitsProcessor:
    """The processor of `prefix_allowed_tokens_fn` that hands over the number of the prompt, whatever the branch."""
    copied, function = copy.copy(processor), processor._prefix_allowed_tokens_fn
    number = row // processor._num_beams
    copied._num_beams = 1

    def allowed(_, ids: torch.Tensor) -> list[int]:
        tokens = function(number, ids)
        if not len(tokens):
            raise ValueError(
                f"`prefix_allowed_tokens_fn` allows no token for prompt {number} after tokens that end with "
                f"{ids[-5:].tolist()}. Let it allow at least one for each text, such as EOS: RAIN asks it about texts "
                "that it does not commit, too."
            )
        return tokens

    copied._prefix_allowed_tokens_fn = allowed
    return copied
