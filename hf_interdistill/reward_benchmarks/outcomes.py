"""What each item adds to each score of a benchmark: for intervals of scores, and to compare models item by item.

A benchmark's scores are linear in the scores of its cells (`Benchmark.combine`), and these are means over the items of
one subset. Where a row weighs more than another, its part is that of the linearized ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .items import Benchmark, Item, Rewards, judged_together
from .statistics import Estimate, Part, sum_of


class OutcomeTable:
    """Outcomes of models on the items of a benchmark.

    Args:
        benchmark: whose scores. items: all that are scored. resamples: of the bootstrap.

    Attributes:
        groups: numbers of the items that are judged as one. names: of all scores, as in tables.
    """

    def __init__(self, benchmark: Benchmark, items: Sequence[Item], resamples: int):
        self.benchmark, self.items, self.resamples = benchmark, items, resamples
        self.groups = judged_together(items)
        blank = [[0.0] * len(item.candidates) for item in items]
        cells = benchmark.judge(items, blank, False)
        self._cells = {name: number for number, name in enumerate(cells)}
        basis = np.eye(len(cells))
        unit = {name: replace(cell, score=basis[number]) for number, (name, cell) in enumerate(cells.items())}
        self._coefficients: dict[str, np.ndarray] = benchmark.combine(unit).scores()  # type: ignore[assignment]
        self.names = list(self._coefficients)
        self._weights = self._by_cell(blank, False)[1]
        subsets = np.array([items[group[0]].subset for group in self.groups])
        self._subsets = [np.flatnonzero(subsets == name) for name in dict.fromkeys(subsets)]

    def outcomes(self, rewards: Sequence[Rewards], *, is_tie_half: bool = False) -> np.ndarray:
        """Scores `(groups, cells)` of each group of items alone, 0 in cells that it is not of."""
        return self._by_cell(rewards, is_tie_half)[0]

    def score(self, name: str, outcomes: np.ndarray) -> Estimate:
        """A score of a model with its interval."""
        return sum_of(self._parts(name, outcomes, is_difference=False), self.resamples)

    def difference(self, name: str, mine: np.ndarray, theirs: np.ndarray) -> Estimate:
        """A score of one model minus another's, paired by items."""
        return sum_of(self._parts(name, mine - theirs, is_difference=True), self.resamples)

    def _by_cell(self, rewards: Sequence[Rewards], is_tie_half: bool) -> tuple[np.ndarray, np.ndarray]:
        values, weights = np.zeros((2, len(self.groups), len(self._cells)))
        for number, group in enumerate(self.groups):
            judged = self.benchmark.judge([self.items[i] for i in group], [rewards[i] for i in group], is_tie_half)
            for name, cell in judged.items():
                values[number, self._cells[name]], weights[number, self._cells[name]] = cell.score, cell.weight
        return values, weights

    def _parts(self, name: str, outcomes: np.ndarray, *, is_difference: bool) -> list[Part]:
        coefficients = self._coefficients[name]
        parts = []
        for rows in self._subsets:
            of_rows = self._weights[rows]
            used = np.flatnonzero((coefficients != 0) & of_rows.any(0))
            if not used.size:
                continue
            values, weights, factors = outcomes[np.ix_(rows, used)], of_rows[:, used], coefficients[used]
            if used.size == 1:
                values, weights = values[weights[:, 0] > 0], weights[weights[:, 0] > 0]
            means = (weights * values).sum(0) / weights.sum(0)
            linear = means + weights / weights.mean(0) * (values - means)
            most = float(factors.sum())
            bounds = (-most if is_difference else 0.0, most)
            parts.append(Part(linear @ factors, bounds, int((weights > 0).sum(0).min())))
        return parts
