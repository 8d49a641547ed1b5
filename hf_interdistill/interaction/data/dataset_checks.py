"""Checks of a preference dataset before it is tokenized, and of its lengths afterwards."""

from __future__ import annotations

import logging
from typing import Any

from datasets import Dataset, IterableDataset
from trl.data_utils import get_dataset_column_names

from ...scoring.checks import check_preference_columns
from ...scoring.formatting import RewardFormatter, template_kwargs
from ...scoring.normal_form import is_missing
from ...utils.context_length import check_row_length
from .labels import LABEL_COLUMNS, check_labels
from .pairs import read_preference
from .rankings import OTHER_IDS, check_ranking_columns, is_ranked

logger = logging.getLogger(__name__)

_TOKENIZED = ("chosen_ids", "rejected_ids")
_TEXT = ("chosen", "rejected")
_UNREAD = ("images", "image", "videos", "video", "audio", "pixel_values")


def check_columns(dataset: Dataset | IterableDataset, name: str, is_text_needed: bool) -> None:
    """Check that a dataset has rows and the columns of a preference dataset.

    Raises:
        TypeError: it is no `Dataset` and no `IterableDataset`.
        ValueError: it has a transform, is empty, or lacks columns; the message names those that resemble them.
    """
    if not isinstance(dataset, Dataset | IterableDataset):
        raise TypeError(
            f"The {name} dataset is a {type(dataset).__name__}, but must be a `Dataset` or `IterableDataset` of "
            "`datasets`. Make one of rows with `Dataset.from_list(rows)`; of several splits choose one."
        )
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
        raise ValueError(
            f"The {name} dataset has a transform (`with_transform`, `set_transform`), which changes rows as they are "
            "read, but each row is tokenized once, before. Apply the transform first: "
            "`dataset.with_format(None).map(transform, batched=True)`."
        )
    if next(iter(dataset), None) is None:
        raise ValueError(f"The {name} dataset is empty. Give it at least one row.")
    columns = get_dataset_column_names(dataset)
    if is_text_needed and set(_TOKENIZED) <= set(columns) and not set(_TEXT) <= set(columns):
        raise ValueError(
            f"The {name} dataset is tokenized (`chosen_ids`, `rejected_ids`) without its text, but the teacher "
            "reads text. Keep the columns `prompt`, `chosen`, `rejected`, or train with `alignment_weight=0`."
        )
    if is_ranked(columns):
        check_ranking_columns(columns, f"The {name} dataset")
        return
    if not (set(_TOKENIZED) <= set(columns) or {"chosen_input_ids", "rejected_input_ids"} <= set(columns)):
        check_preference_columns(columns, f"The {name} dataset")


def check_rows(dataset: Dataset | IterableDataset, name: str, formatter: RewardFormatter) -> None:
    """Check every row of a dataset (of a stream, the first) and warn of what `RewardTrainer` would not notice.

    Raises:
        ValueError: a row that is not a preference, or a label that is none (`check_labels`); the message names the
            row.
    """
    columns = get_dataset_column_names(dataset)
    unread = [column for column in _UNREAD if column in columns]
    if unread:
        logger.warning(f"The {name} dataset has the column `{unread[0]}`, which a reward model of text does not read.")
    is_text = set(_TEXT) <= set(columns) and not set(_TOKENIZED) <= set(columns)
    read = ("prompt", *_TEXT, "tools", "chat_template_kwargs", *LABEL_COLUMNS)
    used = [column for column in read if column in columns and (is_text or column in LABEL_COLUMNS)]
    if not used:
        return
    rows = dataset.select_columns(used) if isinstance(dataset, Dataset) else [next(iter(dataset))]
    repeated = 0
    for index, row in enumerate(rows):
        try:
            check_labels(row)
            repeated += is_text and _check_preference(row, formatter)
        except ValueError as error:
            raise ValueError(f"{name} dataset: Row {index}: {error}") from None
    if repeated:
        logger.warning(
            f"{name} dataset: in {repeated} of {len(rows)} pairs both responses begin with the prompt, which is read "
            "twice, as in RewardTrainer. If they hold the whole conversation, remove the column "
            "(`dataset.remove_columns('prompt')`)."
        )


def _check_preference(row: dict[str, Any], formatter: RewardFormatter) -> bool:
    """Whether both responses begin with the prompt."""
    prompt: Any = row.get("prompt")
    preference = read_preference(row)
    for response in (preference.chosen, preference.rejected):
        formatter.check(preference.prompt, response)
    if preference.is_conversation:
        template_kwargs(row)
    if is_missing(prompt) or not len(prompt):
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
    others = [OTHER_IDS] if OTHER_IDS in dataset.column_names else []
    longest = 0
    for batch in dataset.select_columns([*_TOKENIZED, *others]).iter(1000):
        rows = [ids for column in _TOKENIZED for ids in batch[column]]
        rows += [ids for column in others for own in batch[column] for ids in own]
        longest = max(longest, *map(len, rows))
    warning = check_row_length(model, longest, f"The longest text of the {name} dataset")
    if warning:
        logger.warning(warning)
