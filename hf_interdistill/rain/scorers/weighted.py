"""A weighted mean of scorers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .base import Costs, Scorer
from .resolve import as_scorer


@dataclass
class WeightedScorer(Scorer):
    """A weighted mean of scorers.

    Args:
        parts: pairs of a scorer (anything that `as_scorer` accepts) and a positive weight. Weights need not sum to 1.

    It supports speculation if all parts do.
    """

    parts: Sequence[tuple[Any, float]]
    _costs: list[Costs] = field(default_factory=list, repr=False)

    def __post_init__(self):
        if not self.parts or any(not 0 < weight < math.inf for _, weight in self.parts):
            weights = [weight for _, weight in self.parts]
            raise ValueError(f"The weights are {weights}, but WeightedScorer needs at least one, all positive.")
        self.parts = [(as_scorer(scorer), float(weight)) for scorer, weight in self.parts]
        self.supports_speculation = all(scorer.supports_speculation for scorer, _ in self.parts)

    def bind(self, model, tokenizer) -> Scorer:
        """See `Scorer.bind`."""
        return WeightedScorer([(scorer.bind(model, tokenizer), weight) for scorer, weight in self.parts])

    def start_search(self) -> None:
        """See `Scorer.start_search`."""
        for scorer, _ in self.parts:
            scorer.start_search()

    def score(self, exchanges):
        """See `Scorer.score`."""
        results = [scorer.score_batch(exchanges) for scorer, _ in self.parts]
        self._costs = [costs for _, costs in results]
        total = sum(weight for _, weight in self.parts)
        return [
            sum(weight / total * values[i] for (values, _), (_, weight) in zip(results, self.parts, strict=True))
            for i in range(len(exchanges))
        ]

    def costs(self, count: int) -> Costs:
        """See `Scorer.costs`."""
        return Costs(
            [sum(costs.tokens[i] for costs in self._costs) for i in range(count)],
            sum(costs.forward_passes for costs in self._costs),
            sum(costs.shared_tokens for costs in self._costs),
        )
