"""Attention by stage: where does the scored token look, in pairs ranked right and in pairs ranked wrong?

Source: Figure 1 of arXiv 2508.02618 (in misclassified pairs more attention goes to the last part); five equal stages,
the separate first token and the rule of the finding are ours. Attention explains little of a reward, and a model that
was trained to attend like a teacher will do so. So this is a hint, not evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...utils.wording import FLAG, INCONCLUSIVE, PASS
from ..config import DiagnosisConfig
from .estimates import FEW_PAIRS, Estimate, Finding, bootstrap, mean, points
from .pair_results import PairResults


@dataclass(frozen=True)
class StageMasses:
    """Mean attention of the scored token over one group of pairs.

    Args:
        sink: mass on the first token, of all attention. stages: shares of the other mass, from the start to the end.
    """

    sink: Estimate
    stages: list[Estimate]


@dataclass(frozen=True)
class AttentionStages:
    """Attention by stage.

    Args:
        layers: layers it was averaged over. right, wrong: the two groups. last_gap: share of the last stage in wrong
            pairs minus in right ones.
    """

    layers: tuple[int, ...]
    right: StageMasses
    wrong: StageMasses
    last_gap: Estimate

    def finding(self) -> Finding:
        """`flag`: wrong pairs have more of their attention on the last stage; `pass`: they have not more than one
        point more; `inconclusive`: too uncertain, or fewer than 10 pairs in a group."""
        if min(self.right.sink.pairs, self.wrong.sink.pairs) < FEW_PAIRS:
            groups = f"{self.wrong.sink.pairs} wrong ones, {self.right.sink.pairs} right ones"
            return Finding(INCONCLUSIVE, f"Too few pairs to compare: {groups}.")
        sentence = f"Share of the last fifth in wrong pairs minus right pairs: {points(self.last_gap)}."
        if self.last_gap.low > 0:
            return Finding(FLAG, f"{sentence} Wrong pairs look more at the end.")
        return Finding(PASS if self.last_gap.high < 0.01 else INCONCLUSIVE, sentence)


def _gap(last: np.ndarray, is_wrong: np.ndarray, is_right: np.ndarray) -> np.ndarray:
    return (last * is_wrong).sum(-1) / is_wrong.sum(-1) - (last * is_right).sum(-1) / is_right.sum(-1)


def measure_attention(results: PairResults, config: DiagnosisConfig) -> AttentionStages:
    options: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed}
    known = ~np.isnan(results.attention).any(1)
    attention, margins = results.attention[known], results.margins[known]

    def group(chosen: np.ndarray) -> StageMasses:
        sink, *stages = (bootstrap(mean, column, **options) for column in attention[chosen].T)
        return StageMasses(sink, stages)

    gap = bootstrap(_gap, attention[:, -1], (margins < 0) * 1.0, (margins > 0) * 1.0, **options)
    return AttentionStages(config.attention_layers, group(margins > 0), group(margins < 0), gap)
