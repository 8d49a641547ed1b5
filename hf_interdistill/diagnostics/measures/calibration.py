"""Calibration: is `sigmoid(margin)` the probability that it claims to be?

Pairs are shown in random order, so that nothing tells which response was chosen; otherwise every label is 1,
and a model that always says "the first" looks calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ...scoring.metrics import calibration_error, in_random_order, sigmoid
from ...utils.binomial import unseen_share
from ...utils.wording import FLAG, INCONCLUSIVE, PASS
from ..config import DiagnosisConfig
from .estimates import FEW_PAIRS, Estimate, Finding, bootstrap, mean, share_of
from .pair_results import PairResults

_LARGE_ERROR = 0.05
_SHOWN_BINS = 5  # of the diagram: few enough that each holds pairs for an interval
_CHANCE_NLL = float(np.log(2))


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs of about the same probability.

    Args:
        probability: their mean. lowest, highest: of them.
        share: how often the first response was the better one, with its exact interval.
    """

    probability: float
    lowest: float
    highest: float
    share: Estimate


@dataclass(frozen=True)
class Calibration:
    """Calibration of `sigmoid(margin)`.

    Args:
        ece: expected calibration error. Source: Guo et al., arXiv 1706.04599, Eq. 3.
        ece_by_chance: the error that a perfectly calibrated model with the same probabilities shows on as many pairs:
            its mean and 95 % range. Few pairs make it large.
        brier: mean squared error of the probability. Source: Brier, 1950.
        nll: `-log` of the probability of what was chosen, nats; a coin has 0.693.
        bins: reliability diagram: at most five bins of about equally many pairs, of ten or more where there are as
            many. Pairs of one probability are in one bin. The bins of `ece` are others, of equal width.
    """

    ece: Estimate
    ece_by_chance: Estimate
    brier: Estimate
    nll: Estimate
    bins: list[ReliabilityBin]

    def finding(self) -> Finding:
        """`flag`: the error is beyond chance and above 0.05, or the log loss is worse than a coin's; `pass`: the
        error is below 0.05, or within a chance that is below 0.1; else `inconclusive`."""
        sentence = (
            f"Its probabilities are off by {self.ece.value:.3f} on average; a perfectly calibrated model would show "
            f"up to {self.ece_by_chance.high:.3f} on {self.ece.pairs} pairs. Log loss {self.nll.value:.3f}, a coin "
            "has 0.693."
        )
        if self.ece.pairs < FEW_PAIRS:
            return Finding(INCONCLUSIVE, f"{sentence} Too few pairs to say more.")
        is_beyond_chance = self.ece.value > self.ece_by_chance.high
        if self.nll.low > _CHANCE_NLL or (is_beyond_chance and self.ece.low > _LARGE_ERROR):
            return Finding(FLAG, sentence)
        by_chance = max(self.ece_by_chance.high, unseen_share(self.ece.pairs))
        is_within_small_chance = not is_beyond_chance and by_chance < 2 * _LARGE_ERROR
        return Finding(PASS if is_within_small_chance or self.ece.high < _LARGE_ERROR else INCONCLUSIVE, sentence)


def measure_calibration(results: PairResults, config: DiagnosisConfig) -> Calibration:
    options: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed}
    margins, labels = in_random_order(results.margins, config.seed)
    probabilities = sigmoid(margins)

    def error(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return calibration_error(probabilities, labels, config.bins)

    def error_if_calibrated(probabilities: np.ndarray) -> np.ndarray:
        return error(probabilities, (generator.random(probabilities.shape) < probabilities) * 1.0)

    generator = np.random.default_rng(config.seed)
    drawn = np.array([error_if_calibrated(probabilities) for _ in range(config.resamples)])
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Calibration(
        ece=bootstrap(error, probabilities, labels, bounds=(0.0, 1.0), **options),
        ece_by_chance=Estimate(float(drawn.mean()), float(low), float(high), margins.size),
        brier=bootstrap(mean, (probabilities - labels) ** 2, **options),
        nll=bootstrap(mean, np.logaddexp(0.0, -results.margins), **options),
        bins=_reliability(probabilities, labels),
    )


def _reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[ReliabilityBin]:
    """Bins of about equally many pairs, from the lowest probability to the highest."""
    order = np.argsort(probabilities, kind="stable")
    ordered, outcomes = probabilities[order], labels[order]
    pairs = ordered.size
    bins = min(_SHOWN_BINS, max(1, pairs // FEW_PAIRS))
    middles = [round(pairs * number / bins) for number in range(1, bins)]
    # Where equal probabilities would be parted, the whole group goes to the upper bin.
    edges = sorted({0, pairs, *(int(np.searchsorted(ordered, ordered[middle])) for middle in middles)})
    return [
        ReliabilityBin(
            probability=float(ordered[start:end].mean()),
            lowest=float(ordered[start]),
            highest=float(ordered[end - 1]),
            share=share_of(outcomes[start:end]),
        )
        for start, end in pairwise(edges)
    ]
