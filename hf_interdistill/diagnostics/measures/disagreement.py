"""Disagreement: do the members of an ensemble differ, and is it more often wrong where they do?

Source: arXiv 2310.02743 takes the spread among members for the uncertainty of a reward; the measures of pairs and the
rule of the finding are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...utils.wording import FLAG, INCONCLUSIVE, PASS
from ..config import DiagnosisConfig
from .estimates import FEW_PAIRS, Estimate, Finding, bootstrap, percent, points, right, share_of
from .pair_results import PairResults

_FEW_SPLITS = 0.01


@dataclass(frozen=True)
class Disagreement:
    """How far the members of an ensemble differ on the pairs.

    Args:
        split: share of pairs in which some members prefer the one response and some the other.
        spread: standard deviation of the margins among members, mean over pairs, as a share of the standard deviation
            of their mean margin over pairs.
        members: accuracy of each; ties count half here, since models are compared.
        agreed, differed: accuracy of the ensemble on the pairs without and with a split. gap: the first minus the
            second.
    """

    split: Estimate
    spread: Estimate
    members: list[Estimate]
    agreed: Estimate
    differed: Estimate
    gap: Estimate

    def finding(self) -> Finding:
        """`flag`: the members differ in less than 1 % of pairs; `pass`: the ensemble is more often right where they
        agree; `inconclusive`: too uncertain, or fewer than 10 pairs in a group."""
        sentence = f"Members prefer different responses in {percent(self.split)} of pairs."
        if self.split.high < _FEW_SPLITS:
            return Finding(FLAG, f"{sentence} They are nearly one model, and the ensemble no more cautious than it.")
        if min(self.agreed.pairs, self.differed.pairs) < FEW_PAIRS:
            return Finding(INCONCLUSIVE, f"{sentence} Too few pairs to compare with the others.")
        sentence += f" Accuracy where they agree minus where they differ: {points(self.gap)}."
        return Finding(PASS if self.gap.low > 0 else INCONCLUSIVE, sentence)


def _gap(hits: np.ndarray, is_split: np.ndarray) -> np.ndarray:
    agreed = 1 - is_split
    return (hits * agreed).sum(-1) / agreed.sum(-1) - (hits * is_split).sum(-1) / is_split.sum(-1)


def _spread(deviations: np.ndarray, means: np.ndarray) -> np.ndarray:
    return deviations.mean(-1) / means.std(-1)


def measure_disagreement(results: PairResults, config: DiagnosisConfig) -> Disagreement | None:
    """Of an ensemble's results; `None` for those of a single model."""
    if results.members is None:
        return None
    options: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed}
    margins = results.members[..., 0] - results.members[..., 1]
    is_split = (margins.min(0) < 0) & (margins.max(0) > 0)
    hits = right(results.margins)
    return Disagreement(
        split=share_of(is_split * 1.0),
        spread=bootstrap(_spread, margins.std(0), margins.mean(0), **options),
        members=[share_of(right(each)) for each in margins],
        agreed=share_of(hits[~is_split]),
        differed=share_of(hits[is_split]),
        gap=bootstrap(_gap, hits, is_split * 1.0, **options),
    )
