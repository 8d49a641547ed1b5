"""The one place that reads the label columns of a pair: `margin`, `preference_probability`, `tie_probability`."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from ..loss_options import RewardLossOptions
from ..losses.preference import PairLabels

PREFERENCE, TIE = "preference_probability", "tie_probability"
SHARES = (PREFERENCE, TIE)
LABEL_COLUMNS = ("margin", *SHARES)
SHARE_ROUNDING = 1e-6  # shares of annotators are rounded


def check_label_columns(columns: Collection[str], options: RewardLossOptions) -> None:
    """Check that the training dataset has the columns without which an option changes nothing.

    Raises:
        ValueError: a tie model without `tie_probability`; `agreement_margin` without `preference_probability`.
    """
    needed = {
        TIE: ("tie_model", options.tie_model, options.tie_model != "none"),
        PREFERENCE: ("agreement_margin", options.agreement_margin, options.agreement_margin != 0),
    }
    for column, (name, value, is_needed) in needed.items():
        if is_needed and column not in columns:
            raise ValueError(
                f"`{name}` is {value!r}, but the train dataset has no column `{column}`; its columns "
                f"are {', '.join(columns)}. Add it, from 0 to 1 in every row, or leave `{name}` out."
            )


def check_labels(row: Mapping[str, Any]) -> None:
    """Check the label columns that a row has.

    Raises:
        ValueError: a `margin` that is not a finite number; a share that is missing or not in [0, 1]; shares above 1
            together.
    """
    margin = row.get("margin", 0.0)
    if not isinstance(margin, int | float) or not math.isfinite(margin):
        raise ValueError(
            f"`margin` is {margin!r}, but must be a finite number in every row. Fill it in (0 for no margin), or "
            "remove the column."
        )
    for column in SHARES:
        share = row.get(column, 0.0)
        if not isinstance(share, numbers.Real) or not 0 <= float(share) <= 1:  # NaN is not
            raise ValueError(
                f"`{column}` is {share!r}, but must be a number from 0 to 1 in every row. Fill it in "
                f"({'1' if column == PREFERENCE else '0'} for a plain preference), or remove the column."
            )
    if PREFERENCE in row and TIE in row and row[PREFERENCE] + row[TIE] > 1 + SHARE_ROUNDING:
        raise ValueError(
            f"`{PREFERENCE}` is {row[PREFERENCE]!r} and `{TIE}` {row[TIE]!r}, more than 1 together. They are shares "
            "of all annotators: of those who prefer `chosen`, and of those who call it a tie. A plain tie is 0 and 1."
        )


def collate_labels(examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """The shares of a batch, `(pairs,)` float32, for the columns that it has."""
    return {
        column: torch.tensor([float(example[column]) for example in examples], dtype=torch.float32)
        for column in SHARES
        if column in examples[0]
    }


def pair_labels(shares: Mapping[str, torch.Tensor]) -> PairLabels | None:
    """The labels that the shares of a batch mean; `None` without any.

    Args:
        shares: of `collate_labels`.
    """
    if not shares:
        return None
    tie = shares[TIE] if TIE in shares else torch.zeros_like(shares[PREFERENCE])
    chosen = shares[PREFERENCE] if PREFERENCE in shares else 1 - tie
    return PairLabels(chosen, tie.minimum(1 - chosen))
