"""The alignment objective of the study: rows of some units only, queries and keys from before rotary positions."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from rotary import RotaryRecorder
from torch import nn

from hf_interdistill import InteractionDistillationConfig, InteractionDistillationTrainer
from hf_interdistill.interaction.attention.map_sources import MapSource
from hf_interdistill.interaction.attention.maps import AttentionMap
from hf_interdistill.interaction.attention.recorder import AttentionRecorder
from hf_interdistill.interaction.config import require_choices
from hf_interdistill.interaction.losses.alignment import AlignmentResult, shared_units
from hf_interdistill.interaction.objective import AlignmentObjective, AlignmentSettings

STUDY_CHOICES = {"alignment_queries": ("all", "response", "last"), "alignment_rope": ("after", "before")}


@dataclass
class StudyConfig(InteractionDistillationConfig):
    """`InteractionDistillationConfig` with the options of the study.

    Args:
        alignment_queries: units whose rows are aligned: `all`; `response` (no prompt); `last` (the last unit of each
            response).
        alignment_rope: the student's queries and keys `after` rotary positions, as the model multiplies them, or
            `before` them, so that the simulated map does not depend on distance.
    """

    alignment_queries: str = field(default="all", metadata={"choices": list(STUDY_CHOICES["alignment_queries"])})
    alignment_rope: str = field(default="after", metadata={"choices": list(STUDY_CHOICES["alignment_rope"])})

    def __post_init__(self):
        super().__post_init__()
        require_choices(self, STUDY_CHOICES)


@dataclass(frozen=True)
class StudySettings(AlignmentSettings):
    """`AlignmentSettings` with the options of `StudyConfig`."""

    alignment_queries: str = "all"
    alignment_rope: str = "after"

    def __post_init__(self):
        super().__post_init__()
        require_choices(self, STUDY_CHOICES)


class StudyObjective(AlignmentObjective):
    """`AlignmentObjective` with `StudySettings`."""

    settings: StudySettings

    def build_recorder(self, model: nn.Module) -> AttentionRecorder:
        if self.settings.alignment_rope == "before":
            return RotaryRecorder(model, self.student_layers(model))
        return super().build_recorder(model)

    def layer_loss(self, student: AttentionMap, teacher: MapSource, segments: torch.Tensor) -> AlignmentResult:
        shared = shared_units(student, teacher, segments)
        return super().layer_loss(
            student, teacher, segments, query_mask(shared, segments, self.settings.alignment_queries)
        )


def query_mask(shared: torch.Tensor, segments: torch.Tensor, queries: str) -> torch.Tensor:
    """Units whose rows are aligned, `(batch, units)` bool.

    `all`: every unit. `response`: the units of both responses. `last`: the last unit of each response, the one nearest
    to the token whose reward a causal model reads.

    Args:
        shared: `(batch, units)` bool, units that both models have read.
        segments: `(batch, units)` 0 prompt, 1 chosen, 2 rejected, -1 padding; units in the order of their text.
    """
    if queries == "all":
        return shared
    if queries == "response":
        return shared & (segments >= 1)
    result = torch.zeros_like(shared)
    for segment in (1, 2):
        own = shared & (segments == segment)
        result |= own & (own.flip(1).cumsum(1).flip(1) == 1)
    return result


class ObjectiveTrainer(InteractionDistillationTrainer):
    """`InteractionDistillationTrainer` with the objective of the study.

    Overrides `build_objective`.

    Args:
        args: a `StudyConfig`.
    """

    def build_objective(self, cached_teacher) -> StudyObjective:
        settings = StudySettings.from_config(self.args)
        autocast = self.accelerator.autocast
        return StudyObjective(self.teacher, settings, cached_teacher=cached_teacher, autocast=autocast)
