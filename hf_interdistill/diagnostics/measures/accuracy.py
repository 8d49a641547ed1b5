"""Accuracy, with ties counted separately: a tie is neither right nor wrong."""

from __future__ import annotations

from dataclasses import dataclass

from ...utils.wording import FLAG, INCONCLUSIVE, PASS
from .estimates import Estimate, Finding, accuracy_of, against_chance, percent, share_of
from .pair_results import PairResults

_MANY_TIES = 0.05


@dataclass(frozen=True)
class PairAccuracy:
    """Share of decided pairs whose chosen response has the higher reward; share of ties."""

    accuracy: Estimate
    ties: Estimate

    def finding(self) -> Finding:
        """`flag`: worse than chance, or ties in more than 5 % of pairs; `pass`: better than chance."""
        if self.ties.low > _MANY_TIES:
            ties = f"Gives both responses the same reward in {percent(self.ties)} of pairs"
            return Finding(FLAG, f"{ties}; of the others it is right in {percent(self.accuracy)}.")
        sentence = f"Right in {percent(self.accuracy)} of pairs; chance is 50 %: {against_chance(self.accuracy)}."
        if self.accuracy.low > 0.5:
            return Finding(PASS, sentence)
        return Finding(FLAG if self.accuracy.high < 0.5 else INCONCLUSIVE, sentence)


def measure_accuracy(results: PairResults) -> PairAccuracy:
    margins = results.margins
    return PairAccuracy(accuracy_of(margins), share_of((margins == 0) * 1.0))
