"""The arms of the study: soft labels and GRM's regularization on top of the study's alignment objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Args:
        arguments: settings of `StudyConfig` (`alignment_weight` is 0 unless given here).
        teacher: `fitted` on the rows the student is trained on; `clean`, fitted on the same rows without cues and
            flipped labels; `untrained`, the encoder as it comes; `none`; or a name of the config's `teacher_variants`.
        margin: by how much the reward of the chosen response must be ahead (TRL's `margin` column).
        smoothing: probability given to the label being wrong.
        score_share: part of each pair's target that is the teacher's own judgment, `sigmoid` of its margin.
        sft_share: part of the loss that is GRM's regularization, its SFT form (`regularization_weight`).
        sft_beta: its temperature.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    teacher: str = "none"
    margin: float = 0.0
    smoothing: float = 0.0
    score_share: float = 0.0
    sft_share: float = 0.0
    sft_beta: float = 0.1

    def __post_init__(self):
        if self.teacher == "none" and (self.score_share or self.arguments.get("alignment_weight")):
            raise ValueError(
                "An arm with `alignment_weight` or `score_share` needs a teacher: 'fitted' or 'untrained'."
            )
        for name in ("smoothing", "score_share", "sft_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but must lie between 0 and 1.")

    @property
    def loss_options(self) -> dict[str, Any]:
        """Options of the reward loss."""
        if not self.sft_share:
            return {}
        return {"regularization_weight": self.sft_share, "regularization_beta": self.sft_beta}


def soft_targets(arm: Arm, pairs: int, teacher_margins: torch.Tensor | None) -> torch.Tensor | None:
    """Probability that the chosen response is the better one, `(pairs,)`; `None` where every label is believed."""
    if not arm.smoothing and not arm.score_share:
        return None
    targets = torch.full((pairs,), 1 - arm.smoothing)
    if arm.score_share:
        targets = (1 - arm.score_share) * targets + arm.score_share * torch.sigmoid(teacher_margins)
    return targets
