"""The records of all pairs as columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import STAGES


@dataclass(frozen=True)
class PairResults:
    """What a model did on the pairs that were measured.

    Args:
        rewards: for each kind of text (see `PairMeasurer`) rewards `(pairs, 2)`, chosen and rejected.
        lengths: tokens of chosen and rejected response, `(pairs, 2)`.
        attention: mass on the first token and shares of the stages, mean of both texts, `(pairs, 1 + stages)`; rows of
            `nan` where there is none.
        texts: prompt, chosen and rejected of each pair, shortened: a text, or turns of `role` and `content`.
        left_out: how many pairs were left out, by reason.
        members: rewards of the whole texts by each member of an ensemble, `(members, pairs, 2)`; `None` for a single
            model.
    """

    rewards: dict[str, np.ndarray]
    lengths: np.ndarray
    attention: np.ndarray
    texts: list[dict[str, Any]]
    left_out: dict[str, int]
    members: np.ndarray | None = None

    @property
    def margins(self) -> np.ndarray:
        """Reward of the chosen minus reward of the rejected response, `(pairs,)`."""
        return self.margins_of("full")

    def margins_of(self, kind: str) -> np.ndarray:
        return self.rewards[kind][:, 0] - self.rewards[kind][:, 1]

    @classmethod
    def from_records(cls, records: Sequence[dict[str, Any]]) -> PairResults:
        """Columns of records.

        Raises:
            ValueError: no pair was measured, or a reward is not finite.
        """
        measured = [record for record in records if "left_out" not in record]
        left_out = dict(Counter(record["left_out"] for record in records if "left_out" in record))
        if not measured:
            raise ValueError(f"There is no pair to look at: {len(records)} rows, left out {left_out or 'none'}.")
        kinds = measured[0]["rewards"]
        rewards = {kind: np.array([record["rewards"][kind] for record in measured], dtype=float) for kind in kinds}
        for kind, values in rewards.items():
            if not np.isfinite(values).all():
                row = measured[int(np.flatnonzero(~np.isfinite(values).all(1))[0])]["id"]
                raise ValueError(f"Row {row} has a reward that is not finite (text: {kind}): the model is broken.")
        members = [record["members"] for record in measured if "members" in record]
        return cls(
            members=np.array(members, dtype=float).transpose(2, 0, 1) if members else None,
            rewards=rewards,
            lengths=np.array([record["lengths"] for record in measured], dtype=float),
            attention=np.array([_mean_attention(record["attention"]) for record in measured]),
            texts=[record["texts"] for record in measured],
            left_out=left_out,
        )


def _mean_attention(sides: Sequence[Sequence[float] | None]) -> np.ndarray:
    known = [side for side in sides if side is not None]
    return np.mean(known, axis=0) if known else np.full(1 + STAGES, np.nan)
