"""What scores of models are worth: beside those that need no model, with intervals, and against each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..utils.wording import verdict_of
from .baselines import CHANCE, baseline_results, baseline_rewards
from .items import Benchmark, Item, Rewards
from .length import chance_shown, length_matched, longer_preferred
from .outcomes import OutcomeTable
from .statistics import Estimate


@dataclass(frozen=True)
class AgainstBaseline:
    """A model's score minus that of the best baseline of the same line."""

    baseline: str
    difference: Estimate

    @property
    def mark(self) -> str:
        """`!` where the model is not above the baseline, `?` where that is not shown, else nothing."""
        if self.difference.value <= 0:
            return "!"
        return "" if self.difference.low > 0 else "?"


@dataclass(frozen=True)
class ModelAnalysis:
    """Of one model; every mapping is by the name of a score, as in tables (subsets, `[sections]`, `total`).

    Args:
        scores: with intervals. against_baseline: minus the best baseline.
        length_matched: by subset and for `all`, with the number of pairs.
        longer_preferred: share of pairs, see `length.longer_preferred`.
        differences: by other model, this one's scores minus the other's.
    """

    scores: dict[str, Estimate]
    against_baseline: dict[str, AgainstBaseline]
    length_matched: dict[str, tuple[Estimate, int]]
    longer_preferred: float
    differences: dict[str, dict[str, Estimate]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what is not defined is `None`."""
        return {
            "intervals": {name: _plain(each) for name, each in self.scores.items()},
            "minus_best_baseline": {
                name: {"baseline": each.baseline, **_compared(each.difference)}
                for name, each in self.against_baseline.items()
            },
            "length_matched": {
                name: {**_plain(each), "pairs": pairs, "verdict": chance_shown(each)}
                for name, (each, pairs) in self.length_matched.items()
            },
            "longer_preferred": None if math.isnan(self.longer_preferred) else self.longer_preferred,
            "differences": {
                other: {name: _compared(each) for name, each in scores.items()}
                for other, scores in self.differences.items()
            },
        }


@dataclass(frozen=True)
class Analysis:
    """Of one benchmark.

    Args:
        baselines: scores by baseline and name. minus_chance: the same minus those of `chance`. models: by name.
        length_share: largest difference of lengths that are alike, of the longer one.
    """

    baselines: dict[str, dict[str, float]]
    minus_chance: dict[str, dict[str, Estimate]]
    models: dict[str, ModelAnalysis]
    length_share: float

    def best_baseline(self, name: str) -> str:
        """The baseline with the highest score of this name; of equal ones the first."""
        return max(self.baselines, key=lambda baseline: self.baselines[baseline][name])

    def to_dict(self, model: str) -> dict[str, Any]:
        """What `results.json` reports about a model, besides its scores."""
        baselines = {
            baseline: {
                name: {"score": score, "minus_chance": _compared(self.minus_chance[baseline][name])}
                for name, score in scores.items()
            }
            for baseline, scores in self.baselines.items()
        }
        return {"baselines": baselines, "length_share": self.length_share, **self.models[model].to_dict()}


def analyze(
    benchmark: Benchmark,
    items: Sequence[Item],
    rewards: Mapping[str, Sequence[Rewards]],
    *,
    length_share: float = 0.1,
    resamples: int = 1000,
) -> Analysis:
    """Baselines, intervals and paired differences.

    Args:
        benchmark: whose scores. items: what was scored. rewards: by model, of each item.
        length_share: answers whose lengths differ by no more than this share of the longer one are alike, 0 to 1.
        resamples: of the bootstrap over items.
    """
    table = OutcomeTable(benchmark, items, resamples)
    by_choice = baseline_rewards(items)
    baselines = {name: each.scores() for name, each in baseline_results(benchmark, items, by_choice).items()}
    chosen = {name: table.outcomes(each, is_tie_half=True) for name, each in by_choice.items()}
    minus_chance = {
        baseline: {name: table.difference(name, each, chosen[CHANCE]) for name in table.names}
        for baseline, each in chosen.items()
    }
    analysis = Analysis(baselines, minus_chance, {}, length_share)
    outcomes = {model: table.outcomes(each) for model, each in rewards.items()}
    best = {name: analysis.best_baseline(name) for name in table.names}
    for model, mine in outcomes.items():
        analysis.models[model] = ModelAnalysis(
            scores={name: table.score(name, mine) for name in table.names},
            against_baseline={
                name: AgainstBaseline(best[name], table.difference(name, mine, chosen[best[name]]))
                for name in table.names
            },
            length_matched=length_matched(items, rewards[model], length_share, resamples),
            longer_preferred=longer_preferred(items, rewards[model]),
            differences={
                other: {name: table.difference(name, mine, theirs) for name in table.names}
                for other, theirs in outcomes.items()
                if other != model
            },
        )
    return analysis


def _plain(estimate: Estimate) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in asdict(estimate).items()
    }


def _compared(estimate: Estimate) -> dict[str, Any]:
    return {**_plain(estimate), "verdict": verdict_of(estimate.low, estimate.high)}
