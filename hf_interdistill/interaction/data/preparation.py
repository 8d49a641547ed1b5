"""Tokenizes preference datasets for alignment, and counts unusual rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import ProcessorMixin
from trl.data_utils import get_dataset_column_names

from ...scoring.formatting import RewardFormatter, normal_text, template_kwargs
from ...scoring.normal_form import is_missing
from .preference_tokenizer import PreferenceTokenizer
from .rankings import COMPLETIONS, OTHER_IDS, RANKS

logger = logging.getLogger(__name__)

_TOKEN_COLUMNS = (("chosen_ids", "rejected_ids"), ("chosen_input_ids", "rejected_input_ids"))


class CountingTokenizer:
    """`PreferenceTokenizer` for a stream, which counts the pairs that will be dropped as they pass, and warns of the
    first response that loses units.

    Args:
        tokenizer: for the rows.
        name: of the dataset, for the warning.
        max_length: tokens above which `RewardTrainer` drops a pair, or `None`.
        dropped: the counter, a tensor of one number in shared memory, so that worker processes can count too.
    """

    def __init__(self, tokenizer: PreferenceTokenizer, name: str, max_length: int | None, dropped: torch.Tensor):
        self.tokenizer, self.name, self.max_length, self.dropped = tokenizer, name, max_length, dropped
        self.has_warned = False

    def __call__(self, example, index: int):
        columns = self.tokenizer(example, index)
        longest = max(len(columns["chosen_ids"]), len(columns["rejected_ids"]))
        if columns["has_equal_ids"] or (self.max_length is not None and longest > self.max_length):
            self.dropped += 1
        warning = None if self.has_warned else lost_units_warning([columns["units_lost"]], [columns["unit_sizes"]])
        if warning:
            self.has_warned = True
            logger.warning(f"{self.name} dataset, row {index}: {warning}")
        return columns


class ConversationTokenizer:
    """The token ids of a row of messages, without a teacher: `chosen_ids`, `rejected_ids`, `has_equal_ids`.

    `RewardTrainer` makes the same ids of messages in their normal form, but reads what Arrow makes of them.

    Args:
        tokenizer: the student's, fast or slow.
    """

    def __init__(self, tokenizer):
        self.formatter = RewardFormatter(tokenizer)

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        prompt, kwargs = normal_text(example.get("prompt")), template_kwargs(example)
        chosen, rejected = (
            self.formatter.encode(prompt, normal_text(example[side]), **kwargs) for side in ("chosen", "rejected")
        )
        return {"chosen_ids": chosen, "rejected_ids": rejected, "has_equal_ids": int(chosen == rejected)}


def without_own_names(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """A dataset without columns of the user's that have a name of what is made here; one made here stays as it is."""
    first: dict[str, Any] = next(iter(dataset), {})
    is_tokenized = any(all(isinstance(first.get(name), list) for name in names) for names in _TOKEN_COLUMNS)
    is_numbered = is_tokenized and isinstance(first.get("pair_index"), int)
    own = {*PreferenceTokenizer.COLUMNS, *PreferenceTokenizer.COUNTS}
    if is_numbered and own <= set(first):
        return dataset
    if is_numbered:
        own -= {"pair_index"}
    else:
        own |= {OTHER_IDS, *([] if COMPLETIONS in first else [RANKS])}
    if "chosen" in first and not is_tokenized:
        own |= {name for names in _TOKEN_COLUMNS for name in names}
    found = [name for name in first if name in own]
    return dataset.remove_columns(found) if found else dataset


def add_pair_index(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Number the rows, so that a batch can be traced back to them."""
    if "pair_index" in get_dataset_column_names(dataset):
        return dataset
    if isinstance(dataset, Dataset):
        return dataset.add_column("pair_index", list(range(len(dataset))))
    return dataset.map(lambda example, index: {"pair_index": index}, with_indices=True)


def tokenize_pairs(
    dataset,
    tokenizer: PreferenceTokenizer,
    *,
    name: str,
    num_proc: int | None,
    max_length,
    dropped: torch.Tensor,
    is_training: bool,
):
    """Add the columns of `PreferenceTokenizer` to a dataset or a stream.

    Pairs of which the student reads the same tokens twice are dropped in training, and stay in evaluation.
    """
    own = {*PreferenceTokenizer.COLUMNS, *PreferenceTokenizer.COUNTS}
    is_tokenized = own <= set(get_dataset_column_names(dataset))
    if isinstance(dataset, IterableDataset):
        counter = dropped if is_training else torch.zeros_like(dropped)
        counting = CountingTokenizer(tokenizer, name, max_length, counter)
        tokenized = dataset if is_tokenized else dataset.map(counting, with_indices=True)
        if not is_training:
            return tokenized
        tokenized = tokenized.filter(_differs, input_columns=["has_equal_ids"])
        require_pairs(tokenized, name, max_length)
        return tokenized
    with PartialState().main_process_first():
        desc = f"Tokenizing {name} dataset for student and teacher"
        tokenized = (
            dataset if is_tokenized else dataset.map(tokenizer, with_indices=True, num_proc=num_proc, desc=desc)
        )
        fate = "were dropped" if is_training else "stay, as with RewardTrainer, but are not aligned"
        is_any_equal = warn_of_equal_ids(tokenized, name, fate, is_training)
        if not (is_any_equal and is_training):
            return tokenized
        return tokenized.filter(_differs, input_columns=["has_equal_ids"])


def tokenize_conversations(dataset, tokenizer, *, name: str, num_proc: int | None, is_training: bool):
    """Add `chosen_ids` and `rejected_ids` to a dataset or a stream of messages; leave any other to `RewardTrainer`."""
    columns = get_dataset_column_names(dataset)
    is_left = "chosen_ids" in columns or "chosen_input_ids" in columns or isinstance(tokenizer, ProcessorMixin)
    first = None if is_left else next(iter(dataset), None)
    if first is None:
        return dataset
    if isinstance(first["chosen"], str):
        return _plain_texts(dataset)
    if isinstance(dataset, IterableDataset):
        return dataset.map(ConversationTokenizer(tokenizer))
    with PartialState().main_process_first():
        tokenized = dataset.map(ConversationTokenizer(tokenizer), num_proc=num_proc, desc=f"Tokenizing {name} dataset")
    warn_of_equal_ids(tokenized, name, "stay, as with RewardTrainer (`alignment_weight=0`)", is_training)
    return tokenized


def _plain_texts(dataset):
    """Rows of text that `RewardTrainer` can read: a missing prompt is empty, and no arguments of chat templates."""
    columns = get_dataset_column_names(dataset)
    dataset = dataset.remove_columns([name for name in ("tools", "chat_template_kwargs") if name in columns])
    if "prompt" not in columns:
        return dataset
    if isinstance(dataset, Dataset) and not any(map(is_missing, dataset["prompt"])):
        return dataset
    return dataset.map(_filled_prompt, input_columns=["prompt"])


def _filled_prompt(prompt: str | None) -> dict[str, str]:
    return {"prompt": normal_text(prompt) or ""}


def warn_of_date(dataset, tokenizer) -> None:
    """Warn if the chat template writes today's date into the first row."""
    first = next(iter(dataset), None)
    if first is None or isinstance(first.get("chosen"), str | None) or isinstance(tokenizer, ProcessorMixin):
        return
    RewardFormatter(tokenizer, is_date_warned=True).encode(
        normal_text(first.get("prompt")), normal_text(first["chosen"]), **template_kwargs(first)
    )


def _differs(has_equal_ids: int) -> bool:
    return not has_equal_ids


def warn_of_equal_ids(dataset: Dataset, name: str, fate: str, is_training: bool) -> bool:
    """Whether there are pairs of which the student reads the same tokens twice; with a warning.

    Args:
        dataset: with the column `has_equal_ids`. fate: what becomes of them, for the message.
        is_training: whether the pairs are trained on.

    Raises:
        ValueError: all pairs to train on are such.
    """
    rows = [row for row, is_equal in enumerate(dataset["has_equal_ids"]) if is_equal]
    if not rows:
        return False
    what = (
        "chosen and rejected are the same token ids for the student, so their loss is ln 2 whatever it learns. Either "
        "the texts are equal, or the chat template drops what they differ in (a thought before `</think>`, a content "
        "of another kind than it reads: text or list of parts). Print "
        "`tokenizer.apply_chat_template(row['chosen'], tokenize=False)`, then change rows or template."
    )
    if len(rows) == len(dataset) and is_training:
        raise ValueError(f"No pair of the {name} dataset can be learned from: of all {len(rows)}, {what}")
    logger.warning(
        f"{name} dataset: {len(rows)} of {len(dataset)} pairs {fate} (rows {', '.join(map(str, rows[:5]))}"
        f"{', ...' if len(rows) > 5 else ''}): {what}"
    )
    return True


def lost_units_warning(lost: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]]) -> str | None:
    """What to say of responses that lose units; `None` if none does.

    Args:
        lost, sizes: units lost and units of each pair, in prompt, chosen and rejected.
    """
    gone, there = (np.array(each).sum(0) for each in (lost, sizes))
    if not gone[1:].any():
        return None
    parts = [f"{gone[i]} of {there[i]} of the {name}" for i, name in enumerate(("prompts", "chosen", "rejected"))]
    return (
        f"the chat template leaves the student no token of some units (words): {', '.join(parts)}. Only units that "
        "student and teacher both read are aligned. Compare a row with "
        "`tokenizer.apply_chat_template(row['prompt'] + row['chosen'], tokenize=False)`; take out of the responses "
        "what it drops or changes, or set a template that keeps it."
    )


def require_pairs(stream: IterableDataset, name: str, max_length: int | None) -> None:
    """Raise `ValueError` for a stream without a row."""
    if next(iter(stream), None) is None:
        raise ValueError(
            f"No pair of the {name} dataset is left: of each, a response is longer than `max_length={max_length}` "
            "tokens, or both are the same token ids for the student. Raise `max_length`, set it to None, or change "
            "the rows."
        )


def log_pair_statistics(before, after, name: str, max_length: int | None) -> None:
    """Log how many pairs were dropped and how many are odd.

    Raises:
        ValueError: no pair is left.
    """
    if isinstance(after, IterableDataset):
        require_pairs(after, name, max_length)
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
    warning = lost_units_warning(after["units_lost"], after["unit_sizes"])
    if warning:
        logger.warning(f"{name} dataset: {warning}")
    counts = {
        "an empty response": sum(after["is_empty"]),
        "no unit that student and teacher both read (they are not aligned)": sum(
            shared == 0 for shared in after["shared_units"]
        ),
        "a message that spells a control token of the student's tokenizer, which is read as that token, as in "
        "RewardTrainer (see docs/security.md)": sum(after["has_control_token"]),
    }
    for what, count in counts.items():
        if count:
            logger.warning(f"{name} dataset: {count} of {len(after)} pairs have {what}.")
