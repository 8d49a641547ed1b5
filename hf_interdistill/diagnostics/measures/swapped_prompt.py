"""Swapped prompt: does an answer get more reward under its own prompt than under another one of about its length?

Source: ours. No label is needed. A model that reads the answer alone gives both the same reward, which is a tie and
counts half: exactly 50 %. Prompts change places two by two, so a model that likes some prompts more than others,
whatever is answered, gains in one place what it loses in the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...utils.wording import FLAG, INCONCLUSIVE, PASS
from ..config import DiagnosisConfig
from .estimates import FEW_PAIRS, Estimate, Finding, bootstrap, percent, right

_LIMIT = 0.6


@dataclass(frozen=True)
class SwappedPrompt:
    """What another prompt does to the rewards of answers.

    Intervals are by bootstrap over swaps: two prompts (or three) that changed places, with all of their pairs.

    Args:
        pairs, prompts: how many were swapped. tokens_apart: by how many tokens two swapped prompts differ, mean.
        own: share of answers with more reward under their own prompt; ties count half.
        chosen, rejected: the same of the better and of the worse answers.
        gain: reward under the own prompt minus that under the other, in standard deviations of the margins.
        left_out: pairs without a prompt to swap, by reason.
    """

    pairs: int
    prompts: int
    tokens_apart: float
    own: Estimate
    chosen: Estimate
    rejected: Estimate
    gain: Estimate
    left_out: dict[str, int]

    def finding(self) -> Finding:
        """`flag`: the interval of `own` lies below 60 %; `pass`: above; else, and with fewer than 10 swaps,
        `inconclusive`."""
        if self.own.pairs < FEW_PAIRS:
            return Finding(INCONCLUSIVE, f"Too few prompts to swap: {self.prompts}, in {self.own.pairs} swaps.")
        sentence = (
            f"An answer gets more reward under its own prompt than under another in {percent(self.own)} of cases; "
            f"without a look at the prompt it would be 50 %. Own minus other: {self.gain.value:+.2f} standard "
            f"deviations of the margins ({self.gain.low:+.2f} to {self.gain.high:+.2f})."
        )
        if self.own.high < _LIMIT:
            return Finding(FLAG, f"{sentence} Which question was asked hardly matters to it.")
        return Finding(PASS if self.own.low > _LIMIT else INCONCLUSIVE, sentence)


def measure_swapped_prompt(
    rewards: np.ndarray,
    prompts: np.ndarray,
    swaps: np.ndarray,
    tokens_apart: np.ndarray,
    config: DiagnosisConfig,
    left_out: dict[str, int] | None = None,
) -> SwappedPrompt:
    """Compare the rewards of answers under their own and under another prompt.

    Args:
        rewards: under the own and the other prompt, of chosen and rejected, `(pairs, 2, 2)`.
        prompts, swaps: numbers of each pair's prompt, and of the swap it was in, `(pairs,)`.
        tokens_apart: tokens by which the two prompts differ in length, `(pairs,)`.
        config: of the bootstrap. left_out: pairs that are not among them, by reason.
    """
    options: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed}
    changes = rewards[:, 0] - rewards[:, 1]
    spread = (rewards[:, 0, 0] - rewards[:, 0, 1]).std()
    _, groups = np.unique(swaps, return_inverse=True)
    sizes = np.bincount(groups).astype(float)

    def over_swaps(values: np.ndarray, **bounds: Any) -> Estimate:
        return bootstrap(_mean_of_groups, np.bincount(groups, weights=values), sizes, **options, **bounds)

    hits = right(changes)
    return SwappedPrompt(
        pairs=len(rewards),
        prompts=len(np.unique(prompts)),
        tokens_apart=float(tokens_apart.mean()),
        own=over_swaps(hits.mean(1), bounds=(0.0, 1.0)),
        chosen=over_swaps(hits[:, 0], bounds=(0.0, 1.0)),
        rejected=over_swaps(hits[:, 1], bounds=(0.0, 1.0)),
        gain=over_swaps(changes.mean(1) / (spread if spread else 1.0)),
        left_out=left_out or {},
    )


def _mean_of_groups(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return sums.sum(-1) / sizes.sum(-1)
