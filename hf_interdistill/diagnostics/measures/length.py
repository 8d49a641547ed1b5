"""Length bias: is the longer response the better one to this model?

Source: common practice; the rule of the finding is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...utils.wording import FLAG, INCONCLUSIVE, PASS
from ..config import DiagnosisConfig
from .estimates import Estimate, Finding, accuracy, accuracy_of, bootstrap, percent, points
from .pair_results import PairResults

_LARGE_GAP = 0.1


@dataclass(frozen=True)
class LengthBias:
    """How rewards depend on length, in tokens of the response.

    Args:
        correlation: Pearson's, of margin and length difference. longer_is_better, longer_is_worse: accuracy where the
            chosen, or the rejected, response is the longer one. gap: the first minus the second.
    """

    correlation: Estimate
    longer_is_better: Estimate
    longer_is_worse: Estimate
    gap: Estimate

    def finding(self) -> Finding:
        """`flag`: one of the two accuracies is more than 10 points above the other; `pass`: less than 10 points
        apart; else `inconclusive`."""
        if np.isnan(self.gap.value):
            return Finding(
                INCONCLUSIVE, "No decided pair with a longer better response, or none with a longer worse one."
            )
        sentence = (
            f"Right in {percent(self.longer_is_better)} where the longer response is the better one and in "
            f"{percent(self.longer_is_worse)} where it is the worse one, a gap of {points(self.gap)}."
        )
        if self.gap.low > _LARGE_GAP:
            return Finding(FLAG, f"{sentence} It prefers longer responses.")
        if self.gap.high < -_LARGE_GAP:
            return Finding(FLAG, f"{sentence} It likes brevity.")
        return Finding(PASS if max(abs(self.gap.low), abs(self.gap.high)) < _LARGE_GAP else INCONCLUSIVE, sentence)


def _correlation(margins: np.ndarray, differences: np.ndarray) -> np.ndarray:
    margins = margins - margins.mean(-1, keepdims=True)
    differences = differences - differences.mean(-1, keepdims=True)
    return (margins * differences).sum(-1) / np.sqrt((margins**2).sum(-1) * (differences**2).sum(-1))


def _gap(margins: np.ndarray, differences: np.ndarray) -> np.ndarray:
    return accuracy(margins * (differences > 0)) - accuracy(margins * (differences < 0))


def measure_length(results: PairResults, config: DiagnosisConfig) -> LengthBias:
    options: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed}
    margins, differences = results.margins, results.lengths[:, 0] - results.lengths[:, 1]
    decided = [margins[(margins != 0) & is_longer] for is_longer in (differences > 0, differences < 0)]
    return LengthBias(
        correlation=bootstrap(_correlation, margins, differences, **options),
        longer_is_better=accuracy_of(margins[differences > 0]),
        longer_is_worse=accuracy_of(margins[differences < 0]),
        gap=bootstrap(
            _gap, margins, differences, bounds=(-1.0, 1.0), smallest_group=min(map(len, decided)), **options
        ),
    )
