"""The one place that reads attribute scores: the columns `chosen_scores` and `rejected_scores`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from trl.data_utils import get_dataset_column_names

from .rankings import is_ranked

ATTRIBUTE_COLUMNS = ("chosen_scores", "rejected_scores")


def check_attribute_columns(columns: Collection[str], name: str) -> None:
    """Check that a dataset can have attribute scores.

    Raises:
        ValueError: ranked responses; a column is missing.
    """
    if is_ranked(columns):
        raise ValueError(
            f"`attribute_weights` is set, but the {name} dataset has ranked responses, which have no attribute "
            "scores. Leave it out, or make pairs of the rows, with `chosen_scores` and `rejected_scores`."
        )
    for column in ATTRIBUTE_COLUMNS:
        if column not in columns:
            raise ValueError(
                f"`attribute_weights` is set, but the {name} dataset has no column `{column}`; its columns are "
                f"{', '.join(columns)}. Add it: a score for each attribute in every row, such as "
                '{"helpfulness": 3, "verbosity": 1}.'
            )


def read_scores(row: Mapping[str, Any], names: Sequence[str]) -> list[list[float]]:
    """Scores of the chosen and of the rejected response, in the order of `names`.

    Raises:
        ValueError: a score that is missing or no finite number.
    """
    found = []
    for column in ATTRIBUTE_COLUMNS:
        own = row.get(column)
        if not isinstance(own, Mapping):
            raise ValueError(
                f"`{column}` is {own!r:.80}, but must hold a score for each attribute "
                f"({', '.join(names)}) in every row."
            )
        for name in names:
            value = own.get(name)
            if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
                known = ", ".join(str(key) for key in own)
                raise ValueError(
                    f"`{column}` has {value!r} for `{name}`, but must have a finite number in every row (it holds "
                    f"{known}). Fill it in, or leave `{name}` out of `attribute_weights`."
                )
        found.append([float(own[name]) for name in names])
    return found


def mean_scores(dataset: Any, names: Sequence[str], name: str) -> list[float]:
    """The mean of each attribute over all responses of a dataset, which is checked.

    Raises:
        ValueError: a stream; a score that is missing or no finite number; the message names the row.
    """
    check_attribute_columns(get_dataset_column_names(dataset), name)
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            f"`attribute_weights` is set, but the {name} dataset is a stream, and the heads start from the mean of "
            "its scores. Load the dataset (`streaming: false`)."
        )
    assert isinstance(dataset, Dataset)
    sums, rows = [0.0] * len(names), dataset.select_columns(list(ATTRIBUTE_COLUMNS)).with_format(None)
    for index, row in enumerate(rows):
        try:
            chosen, rejected = read_scores(row, names)
        except ValueError as error:
            raise ValueError(f"{name} dataset: Row {index}: {error}") from None
        sums = [total + one + other for total, one, other in zip(sums, chosen, rejected, strict=True)]
    return [total / (2 * len(rows)) for total in sums]


def collate_scores(examples: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """`attribute_scores` of a batch, `(2 * pairs, attributes)` float32, chosen rows first; nothing without names."""
    if not names:
        return {}
    chosen, rejected = zip(*(read_scores(example, names) for example in examples), strict=True)
    return {"attribute_scores": torch.tensor([*chosen, *rejected], dtype=torch.float32)}
