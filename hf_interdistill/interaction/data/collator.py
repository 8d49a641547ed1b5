"""Adds the columns of the alignment loss to the batch of a reward collator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .attributes import collate_scores
from .labels import check_labels, collate_labels
from .map_keys import map_keys
from .preference_tokenizer import tokenized_pair
from .rankings import collate_rankings
from .teacher_inputs import PairLayout
from .units import NO_UNIT

ALIGNMENT_KEYS = (
    "student_index",
    "student_units",
    "segments",
    "is_aligned",
    "pair_key",
    "pair_index",
    "map_key",
    "teacher_input_ids",
    "teacher_attention_mask",
    "teacher_units",
    "teacher_token_type_ids",
    "teacher_score_positions",
)


class PairIndexCollator:
    """A reward collator that adds the dataset row (`pair_index`, `(pairs,)`), the label shares of each pair, the
    other responses of rankings (`collate_rankings`), and the scores of attributes (`collate_scores`)."""

    def __init__(self, inner: Callable, pad_token_id: int | None = None, attributes: Sequence[str] = ()):
        self.inner, self.pad_token_id, self.attributes = inner, pad_token_id, list(attributes)

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        for example in examples:
            try:
                check_labels(example)
            except ValueError as error:
                raise ValueError(f"Row {example['pair_index']}: {error}") from None
        batch = self.inner(examples)
        batch.update(collate_labels(examples) | collate_rankings(examples, batch, self.pad_token_id))
        batch.update(collate_scores(examples, self.attributes))
        batch["pair_index"] = torch.tensor([example["pair_index"] for example in examples])
        return batch


class AlignmentCollator(PairIndexCollator):
    """A reward collator that adds the alignment columns.

    Args:
        inner: the reward collator (TRL's `DataCollatorForPreference`, or the user's own): its `input_ids` hold the
            chosen rows, then the rejected ones, padded on the right.
        layout: the rows in which the teacher reads a pair.
        has_map_keys: whether to add `map_key`, the key of each pair in a `map_cache.CachedTeacher`.

    Returns of a call: the inner batch and, for `pairs` pairs, `student_index`, `student_units` `(pairs, content)`;
    `segments` `(pairs, units)`; `pair_key`, `pair_index` `(pairs,)`; `is_aligned` `(pairs,)` bool, whether chosen and
    rejected differ for the student; the teacher's inputs, two rows per pair:
    `(pairs, 2, length)`, `teacher_score_positions` `(pairs, 2, responses)`; with `has_map_keys`, `map_key`
    `(pairs, 2, 2)`: 128 bits for each reading order.
    """

    def __init__(
        self,
        inner: Callable,
        layout: PairLayout,
        has_map_keys: bool = False,
        pad_token_id: int | None = None,
        attributes: Sequence[str] = (),
    ):
        super().__init__(inner, pad_token_id, attributes)
        self.layout, self.has_map_keys = layout, has_map_keys

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = super().__call__(examples)
        width = batch["input_ids"].shape[1]
        indices, units, segments = [], [], []
        for example in examples:
            index, unit = _student_tokens(example, width)
            indices.append(index)
            units.append(unit)
            segments.append([segment for segment, size in enumerate(example["unit_sizes"]) for _ in range(size)])
        batch["student_index"] = _pad(indices, 0)
        batch["student_units"] = _pad(units, NO_UNIT)
        batch["segments"] = _pad(segments, -1)
        batch["is_aligned"] = torch.tensor([each["chosen_ids"] != each["rejected_ids"] for each in examples])
        batch["pair_key"] = torch.tensor([example["pair_key"] for example in examples])
        batch.update(self._teacher_inputs(examples))
        return batch

    def _teacher_inputs(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        packed, keys, has_late_interaction = [], [], self.layout.has_late_interaction
        for example in examples:
            rows = self.layout.pack(tokenized_pair(example))
            packed += rows
            if self.has_map_keys:
                units = sum(example["unit_sizes"])
                keys.append(map_keys(rows, units, has_late_interaction=has_late_interaction))
        collated = self.layout.format.collate(packed)
        inputs = {f"teacher_{name}": tensor.unflatten(0, (-1, 2)) for name, tensor in collated.items()}
        return {**inputs, "map_key": torch.tensor(keys)} if self.has_map_keys else inputs


def _student_tokens(example: dict[str, Any], width: int) -> tuple[list[int], list[int]]:
    """Positions and units of the content tokens: prompt and chosen in the first row, rejected in the second."""
    rows = ((0, example["student_chosen_units"]), (width, example["student_rejected_units"]))
    tokens = [(unit, start + token) for start, row in rows for token, unit in enumerate(row) if unit != NO_UNIT]
    tokens.sort()
    return [position for _, position in tokens], [unit for unit, _ in tokens]


def _pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    width = max(1, max(len(row) for row in rows))
    return torch.tensor([list(row) + [value] * (width - len(row)) for row in rows])
