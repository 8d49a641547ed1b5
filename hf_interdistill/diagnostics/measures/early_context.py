"""Early context: does an instruction at the beginning of the prompt decide which of two answers is right?

Source: ours. Each prompt is read with both of two opposite instructions and both answers, each of which follows one of
them. No label is needed, and neither answer can be called right without the instruction: a model that does not read it
prefers the same answer both times, which is right once, or has ties, which count half. Its accuracy is exactly 50 %.
The same instruction at the end of the prompt is the control: it shows whether the model follows it at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...utils.wording import FLAG, INCONCLUSIVE, PASS
from ..config import DiagnosisConfig
from .estimates import FEW_PAIRS, Estimate, Finding, bootstrap, mean, percent, right, share_of

_LIMIT = 0.6
_BINS = 4


@dataclass(frozen=True)
class DistanceBin:
    """Prompts in which the instruction at the beginning is about as far from the end.

    Args:
        nearest, farthest, median: tokens from the instruction to the end of the prompt. accuracy: in these prompts.
    """

    nearest: int
    farthest: int
    median: float
    accuracy: Estimate


@dataclass(frozen=True)
class EarlyContext:
    """How often the answer that follows the instruction gets more reward; ties count half.

    Args:
        first: accuracy with the instruction at the beginning of the first turn. last: at the end of the last one.
        kept: advantage over chance of `first` minus half of that of `last` (paired).
        moved_first, moved_last: share of prompts in which the instruction moves the difference of the two rewards to
            its side, whether or not this is enough to change which answer is preferred.
        distance_first, distance_last: tokens from the instruction to the end of the prompt, median.
        bins: `first` by distance, rising.
        kinds: `first` and `last` by kind of instruction.
        left_out: prompts that were not read, by reason.
    """

    first: Estimate
    last: Estimate
    kept: Estimate
    moved_first: Estimate
    moved_last: Estimate
    distance_first: float
    distance_last: float
    bins: list[DistanceBin]
    kinds: dict[str, dict[str, Estimate]]
    left_out: dict[str, int]

    def finding(self) -> Finding:
        """`flag`: even at the end of the prompt the instruction is followed in less than 60 %, or at the beginning
        less than half of the advantage over chance is left; `pass`: more than half is; `inconclusive`: neither can
        be said, or there are fewer than 10 prompts."""
        if self.first.pairs < FEW_PAIRS:
            return Finding(INCONCLUSIVE, f"Too few prompts to plant an instruction in: {self.first.pairs}.")
        sentence = (
            f"The answer that follows the instruction gets more reward in {percent(self.first)} of cases with the "
            f"instruction at the beginning ({self.distance_first:.0f} tokens from the end of the prompt, median) and "
            f"in {percent(self.last)} with it at the end; a model that does not read it has 50 %."
        )
        if self.last.high < _LIMIT:
            return Finding(FLAG, f"{sentence} It hardly follows the instruction, wherever it is placed.")
        if not self.last.low > 0.5:
            return Finding(INCONCLUSIVE, f"{sentence} Too uncertain to say whether it follows the instruction at all.")
        if self.kept.high < 0:
            return Finding(FLAG, f"{sentence} Most of its effect is gone at the beginning.")
        if self.kept.low > 0:
            return Finding(PASS, f"{sentence} Most of its effect is there at the beginning too.")
        return Finding(INCONCLUSIVE, f"{sentence} Too uncertain to say how much of its effect is left.")


def measure_early_context(
    rewards: np.ndarray,
    distances: np.ndarray,
    kinds: list[str],
    config: DiagnosisConfig,
    left_out: dict[str, int] | None = None,
) -> EarlyContext:
    """Compare answers under opposite instructions.

    Args:
        rewards: by place of the instruction (beginning, end), instruction and answer, `(prompts, 2, 2, 2)`; an answer
            follows the instruction of its number.
        distances: tokens from the instruction to the end of the prompt, by place, `(prompts, 2)`.
        kinds: name of the instructions of each prompt. config: of the bootstrap.
        left_out: prompts that are not among them, by reason.
    """
    options: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed}

    def accuracy(hits: np.ndarray) -> Estimate:
        return bootstrap(mean, hits, bounds=(0.0, 1.0), **options)

    margins = rewards[..., 0] - rewards[..., 1]  # prompts, places, instructions
    first, last = ((right(margins[..., 0]) + right(-margins[..., 1])) / 2).T
    moved = right(margins[..., 0] - margins[..., 1])
    names = np.array(kinds)
    order = np.argsort(distances[:, 0], kind="stable")
    parts = np.array_split(order, max(1, min(_BINS, len(order) // FEW_PAIRS)))
    return EarlyContext(
        first=accuracy(first),
        last=accuracy(last),
        kept=bootstrap(_kept, first, last, bounds=(-0.75, 0.75), **options),
        moved_first=share_of(moved[:, 0]),
        moved_last=share_of(moved[:, 1]),
        distance_first=float(np.median(distances[:, 0])),
        distance_last=float(np.median(distances[:, 1])),
        bins=[_bin(distances[part, 0], accuracy(first[part])) for part in parts],
        kinds={
            name: {"first": accuracy(first[names == name]), "last": accuracy(last[names == name])}
            for name in dict.fromkeys(kinds)
        },
        left_out=left_out or {},
    )


def _bin(distances: np.ndarray, accuracy: Estimate) -> DistanceBin:
    return DistanceBin(int(distances.min()), int(distances.max()), float(np.median(distances)), accuracy)


def _kept(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    return first.mean(-1) - 0.5 - (last.mean(-1) - 0.5) / 2
