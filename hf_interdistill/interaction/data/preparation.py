"""Prepares preference datasets for alignment: checks, tokenization, counts of unusual rows."""

from __future__ import annotations

import logging

import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from trl.data_utils import get_dataset_column_names

from ...utils.fields import nearest_name
from .preference_tokenizer import PreferenceTokenizer

logger = logging.getLogger(__name__)

_TOKENIZED = ("chosen_ids", "rejected_ids")
_TEXT = ("chosen", "rejected")


def check_columns(dataset: Dataset | IterableDataset, name: str, is_text_needed: bool) -> None:
    """Raise `ValueError` if a dataset lacks the columns of a preference dataset, naming those that resemble them."""
    columns = get_dataset_column_names(dataset)
    if is_text_needed and set(_TOKENIZED) <= set(columns) and not set(_TEXT) <= set(columns):
        raise ValueError(
            f"The {name} dataset is tokenized (`chosen_ids`, `rejected_ids`) without its text, but the teacher "
            "reads text. Keep the columns `prompt`, `chosen`, `rejected`, or train with `alignment_weight=0`."
        )
    if set(_TOKENIZED) <= set(columns) or {"chosen_input_ids", "rejected_input_ids"} <= set(columns):
        return
    missing = [column for column in _TEXT if column not in columns]
    if missing:
        spare = [column for column in columns if column not in (*_TEXT, "prompt")]
        hints = {column: nearest_name(column, spare, cutoff=0.5) for column in missing}
        near = "; ".join(f"is `{hint}` meant as `{column}`?" for column, hint in hints.items() if hint)
        raise ValueError(
            f"The {name} dataset has no column {' and '.join(f'`{column}`' for column in missing)}; its columns are "
            f"{columns}. A preference dataset has `chosen`, `rejected` and, explicit or within them, `prompt`"
            f"{': ' + near if near else ''}. Rename with `dataset.rename_column(...)`."
        )


class CountingTokenizer:
    """`PreferenceTokenizer` for a stream, which counts the pairs that are too long as they pass.

    Args:
        tokenizer: for the rows.
        max_length: tokens above which `RewardTrainer` drops a pair, or `None`.
        dropped: the counter, a tensor of one number in shared memory, so that worker processes can count too.
    """

    def __init__(self, tokenizer: PreferenceTokenizer, max_length: int | None, dropped: torch.Tensor):
        self.tokenizer, self.max_length, self.dropped = tokenizer, max_length, dropped

    def __call__(self, example, index: int):
        columns = self.tokenizer(example, index)
        longest = max(len(columns["chosen_ids"]), len(columns["rejected_ids"]))
        if self.max_length is not None and longest > self.max_length:
            self.dropped += 1
        return columns


def add_pair_index(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Number the rows, so that a batch can be traced back to them."""
    if "pair_index" in get_dataset_column_names(dataset):
        return dataset
    if isinstance(dataset, Dataset):
        return dataset.add_column("pair_index", list(range(len(dataset))))
    return dataset.map(lambda example, index: {"pair_index": index}, with_indices=True)


def tokenize_pairs(
    dataset, tokenizer: PreferenceTokenizer, *, name: str, num_proc: int | None, max_length, dropped: torch.Tensor
):
    """Add the columns of `PreferenceTokenizer` to a dataset or a stream."""
    if "pair_key" in get_dataset_column_names(dataset):
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.map(CountingTokenizer(tokenizer, max_length, dropped), with_indices=True)
    with PartialState().main_process_first():
        return dataset.map(
            tokenizer, with_indices=True, num_proc=num_proc, desc=f"Tokenizing {name} dataset for student and teacher"
        )


def log_pair_statistics(before, after, name: str, max_length: int | None) -> None:
    """Log how many pairs were dropped and how many are odd.

    Raises:
        ValueError: no pair is left.
    """
    if not isinstance(before, Dataset) or not isinstance(after, Dataset):
        return
    dropped = len(before) - len(after)
    if dropped:
        logger.warning(
            f"{name} dataset: {dropped} of {len(before)} pairs are longer than max_length={max_length} tokens and "
            "were dropped, as RewardTrainer does."
        )
    if not len(after):
        raise ValueError(
            f"No pair of the {name} dataset is left: all {len(before)} are longer than `max_length={max_length}` "
            "tokens. Raise `max_length`, or set it to None."
        )
    if "pair_key" not in after.column_names:
        return
    counts = {
        "an empty response": sum(after["is_empty"]),
        "equal chosen and rejected responses (they teach no preference)": sum(after["is_equal"]),
        "no unit that student and teacher both read (they are not aligned)": sum(
            shared == 0 for shared in after["shared_units"]
        ),
        "a message that spells a control token of the student's tokenizer, which is read as that token, as in "
        "RewardTrainer (see docs/security.md)": sum(after["has_control_token"]),
    }
    for what, count in counts.items():
        if count:
            logger.warning(f"{name} dataset: {count} of {len(after)} pairs have {what}.")
