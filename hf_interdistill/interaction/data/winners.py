"""The pair of a row by its labels: the response that won, and the other one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ...scoring.checks import check_rows_of_data
from .labels import LABEL_COLUMNS, PREFERENCE, SHARE_ROUNDING, SHARES, TIE, check_labels
from .rankings import best_and_worst

logger = logging.getLogger(__name__)


def with_winner_chosen(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """A row whose `chosen` is the response that more annotators prefer; `None` if there are as many for both.

    Of ranked responses they are the best and the worst.

    The label columns are left out of a row that has shares, and the responses are exchanged where `rejected` won.

    Raises:
        ValueError: as `check_labels`; a ranking that is none.
    """
    row = best_and_worst(row)
    if not any(column in row for column in SHARES):
        return dict(row)
    check_labels(row)
    found = {name: value for name, value in row.items() if name not in LABEL_COLUMNS}
    tie = float(row.get(TIE, 0))
    chosen = float(row.get(PREFERENCE, 1 - tie))
    lead = chosen - (1 - chosen - tie)
    if abs(lead) <= SHARE_ROUNDING:
        return None
    if lead < 0:
        found["chosen"], found["rejected"] = row["rejected"], row["chosen"]
    return found


def rows_with_winners(rows: Any, name: str) -> list[Any]:
    """Rows as of `with_winner_chosen`, without those that have no winner; what is not a mapping stays as it is.

    Args:
        rows: a dataset or another collection of rows. name: what they are, for messages.

    Raises:
        TypeError: no collection of rows. ValueError: a bad label, with the number of its row; no row has a winner.
    """
    check_rows_of_data(name, rows)
    found = []
    for number, row in enumerate(rows):
        try:
            found.append(with_winner_chosen(row) if isinstance(row, Mapping) else row)
        except ValueError as error:
            raise ValueError(f"`{name}`: Row {number}: {error}") from None
    kept = [row for row in found if row is not None]
    if found and not kept:
        raise ValueError(
            f"`{name}`: none of the {len(found)} rows has a winner by its label columns. Give other data."
        )
    if len(kept) < len(found):
        logger.warning(f"`{name}`: {len(found) - len(kept)} of {len(found)} pairs are left out: they have no winner.")
    return kept
