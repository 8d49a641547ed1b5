"""Prepares preference datasets for alignment: checks, tokenization, counts of unusual rows."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from trl.data_utils import get_dataset_column_names

from ...scoring.checks import check_preference_columns
from ...scoring.formatting import RewardFormatter
from ...utils.context_length import check_row_length
from .pairs import read_preference
from .preference_tokenizer import PreferenceTokenizer

logger = logging.getLogger(__name__)

_TOKENIZED = ("chosen_ids", "rejected_ids")
_TEXT = ("chosen", "rejected")
_UNREAD = ("images", "image", "videos", "video", "audio", "pixel_values")


def check_columns(dataset: Dataset | IterableDataset, name: str, is_text_needed: bool) -> None:
    """Check that a dataset has rows and the columns of a preference dataset.

    Raises:
        TypeError: it is no `Dataset` and no `IterableDataset`.
        ValueError: it is empty, or lacks columns; the message names those that resemble them.
    """
    if not isinstance(dataset, Dataset | IterableDataset):
        raise TypeError(
            f"The {name} dataset is a {type(dataset).__name__}, but must be a `Dataset` or `IterableDataset` of "
            "`datasets`. Make one of rows with `Dataset.from_list(rows)`; of several splits choose one."
        )
    if next(iter(dataset), None) is None:
        raise ValueError(f"The {name} dataset is empty. Give it at least one row.")
    columns = get_dataset_column_names(dataset)
    if is_text_needed and set(_TOKENIZED) <= set(columns) and not set(_TEXT) <= set(columns):
        raise ValueError(
            f"The {name} dataset is tokenized (`chosen_ids`, `rejected_ids`) without its text, but the teacher "
            "reads text. Keep the columns `prompt`, `chosen`, `rejected`, or train with `alignment_weight=0`."
        )
    if not (set(_TOKENIZED) <= set(columns) or {"chosen_input_ids", "rejected_input_ids"} <= set(columns)):
        check_preference_columns(columns, f"The {name} dataset")


def check_rows(dataset: Dataset | IterableDataset, name: str, formatter: RewardFormatter) -> None:
    """Check every row of a dataset (of a stream, the first) and warn of what `RewardTrainer` would not notice.

    Raises:
        ValueError: a row that is no preference, or a margin that is no number; the message names the row.
    """
    columns = get_dataset_column_names(dataset)
    unread = [column for column in _UNREAD if column in columns]
    if unread:
        logger.warning(f"The {name} dataset has the column `{unread[0]}`, which a reward model of text does not read.")
    is_text = set(_TEXT) <= set(columns) and not set(_TOKENIZED) <= set(columns)
    used = [column for column in ("prompt", *_TEXT, "margin") if column in columns and (is_text or column == "margin")]
    if not used:
        return
    rows = dataset.select_columns(used) if isinstance(dataset, Dataset) else [next(iter(dataset))]
    repeated = 0
    for index, row in enumerate(rows):
        try:
            check_margin(row)
            repeated += is_text and _check_preference(row, formatter)
        except ValueError as error:
            raise ValueError(f"{name} dataset: Row {index}: {error}") from None
    if repeated:
        logger.warning(
            f"{name} dataset: in {repeated} of {len(rows)} pairs both responses begin with the prompt, which is read "
            "twice, as in RewardTrainer. If they hold the whole conversation, remove the column "
            "(`dataset.remove_columns('prompt')`)."
        )


def check_margin(row: dict[str, Any]) -> None:
    """Raise `ValueError` if a row has a `margin` that is no finite number."""
    margin = row.get("margin", 0.0)
    if not isinstance(margin, int | float) or not math.isfinite(margin):
        raise ValueError(
            f"`margin` is {margin!r}, but must be a finite number in every row. Fill it in (0 for no margin), or "
            "remove the column."
        )


def _check_preference(row: dict[str, Any], formatter: RewardFormatter) -> bool:
    """Whether both responses begin with the prompt."""
    prompt = row.get("prompt")
    preference = read_preference(row)
    for response in (preference.chosen, preference.rejected):
        formatter.check(preference.prompt, response)
    if not prompt:
        return False
    if isinstance(prompt, str):
        return bool(prompt.strip()) and all(row[side].startswith(prompt) for side in _TEXT)
    return all(row[side][: len(prompt)] == prompt for side in _TEXT)


def check_lengths(dataset: Dataset | IterableDataset, name: str, model) -> None:
    """Warn of prepared texts with more tokens than the model has positions.

    Raises:
        ValueError: the model has a table of positions, and cannot read them.
    """
    if not isinstance(dataset, Dataset):
        return
    batches = dataset.select_columns(list(_TOKENIZED)).iter(1000)
    longest = max(len(ids) for batch in batches for column in _TOKENIZED for ids in batch[column])
    warning = check_row_length(model, longest, f"The longest text of the {name} dataset")
    if warning:
        logger.warning(warning)


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
