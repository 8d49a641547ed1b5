"""How much of the teacher's map a student explains. Pure tensor code."""

from __future__ import annotations

import torch

from .alignment import ALIGNMENT_SCOPES

LITTLE_EXPLAINED = 0.3
"""Below this share little of the map was learnt, and `InteractionDistillationTrainer` warns at the end of the run."""

EXPLAINED_KEYS = {"joint": "explained", "intra": "explained_intra", "inter": "explained_inter"}
"""Name of the share of each scope."""


class ExplainedShare:
    """The share `1 - KL(teacher, student) / KL(teacher, uniform)`, with sums over all pairs before the ratio.

    1: the student's map is the teacher's. 0: it is as far from it as equal attention to all units of a row. Negative:
    farther. Rows in which the teacher itself is uniform have nothing to explain and are left out.
    """

    def __init__(self):
        self._sums = torch.zeros(2, len(ALIGNMENT_SCOPES), dtype=torch.float64)

    def add(self, divergences: torch.Tensor) -> None:
        """Add sums over pairs of `AlignmentResult.divergences`, `(2, scopes)`."""
        self._sums += divergences.detach().to("cpu", torch.float64)

    def take(self) -> dict[str, float]:
        """The share by the names of `EXPLAINED_KEYS`, without scopes that have nothing to explain; the sums are then
        reset."""
        to_student, to_uniform = self._sums.tolist()
        self._sums.zero_()
        return {
            EXPLAINED_KEYS[scope]: 1 - own / uniform
            for scope, own, uniform in zip(ALIGNMENT_SCOPES, to_student, to_uniform, strict=True)
            if uniform > 0
        }
