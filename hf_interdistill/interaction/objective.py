"""The alignment objective: from a batch and the recorded queries and keys of the student to the alignment loss.

Knows no trainer. `InteractionDistillationTrainer` records the student, calls the objective and adds its loss.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields

import torch
from torch import nn

from ..utils.model_config import text_config
from .attention.map_sources import MapSource, UniformMapSource, shuffled_map_source
from .attention.maps import AttentionMap, UnitTokens, concatenate_rows, student_map
from .attention.recorder import AttentionRecorder, RecordedAttention, resolve_layers
from .config import OBJECTIVE_CHOICES, InteractionDistillationConfig, require_choices
from .data.orders import choose_order
from .losses.alignment import AlignmentResult, alignment_loss, mean_alignment
from .map_cache.cached_teacher import CachedTeacher
from .teacher.teacher import InteractionTeacher


@dataclass(frozen=True)
class AlignmentSettings:
    """Settings of the objective, named as in `InteractionDistillationConfig`.

    Args:
        alignment_loss: `kl` (nats) or `mse`.
        alignment_scope: `joint`, `intra` or `inter`.
        alignment_control: `none`, `uniform` or `shuffled`.
        alignment_kernel: `auto`, `torch` or `triton`.
        student_layers: layers of the student, negative from the end; paired in order with `teacher_layers`.
        teacher_layers: layers of the teacher.
        seed: seed of the teacher's reading orders.

    Raises:
        ValueError: a value that is not among the choices of its field.
    """

    alignment_loss: str = "kl"
    alignment_scope: str = "joint"
    alignment_control: str = "none"
    alignment_kernel: str = "auto"
    student_layers: Sequence[int] = (-1,)
    teacher_layers: Sequence[int] = (-1,)
    seed: int = 0

    def __post_init__(self):
        require_choices(self, OBJECTIVE_CHOICES)

    @classmethod
    def from_config(cls, args: InteractionDistillationConfig):
        """Take every field from the config of a trainer."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class AlignmentOutput:
    """Loss and metrics of a batch.

    Args:
        loss: scalar with gradient, a mean over pairs.
        metrics: detached scalars, means over the same pairs: `loss`, `intra`, `inter` (nats for `kl`) and, for a
            fitted teacher, `teacher_accuracy`.
        divergences: those of `AlignmentResult`, means over the same pairs.
        num_pairs: number of pairs in the means, a scalar: those whose responses differ for the student.
    """

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]
    divergences: torch.Tensor
    num_pairs: torch.Tensor


class AlignmentObjective:
    """Divergence of the student's simulated maps from the teacher's maps, a mean over pairs of layers.

    Source: after arXiv 2508.02618, a reconstruction; see `alignment_loss`.

    Args:
        teacher: the frozen teacher.
        settings: see `AlignmentSettings`.
        cached_teacher: reads the teacher's maps from a cache; without it the teacher runs on every batch.
        autocast: makes the context in which the teacher runs.

    Relations: a subclass can override `build_recorder` (what is recorded) and `layer_loss` (the loss of a layer pair);
    `InteractionDistillationTrainer.build_objective` puts it in place.
    """

    def __init__(
        self,
        teacher: InteractionTeacher,
        settings: AlignmentSettings,
        *,
        cached_teacher: CachedTeacher | None = None,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.teacher, self.settings = teacher, settings
        self.cached_teacher, self.autocast = cached_teacher, autocast

    def build_recorder(self, model: nn.Module) -> AttentionRecorder:
        """A recorder of the student's layers.

        Raises:
            ValueError: `student_layers` names a layer that the model does not have.
        """
        return AttentionRecorder(model, self.student_layers(model))

    def student_layers(self, model: nn.Module) -> list[int]:
        """The student's layers, counted from 0."""
        num_layers = text_config(model).num_hidden_layers
        return resolve_layers(self.settings.student_layers, num_layers, "student_layers")

    def __call__(
        self,
        batch: dict[str, torch.Tensor],
        records: Sequence[RecordedAttention],
        *,
        token_index: torch.Tensor | None = None,
        num_pairs: int | None = None,
        visit: int = 0,
        num_visits: int = 1,
    ) -> AlignmentOutput:
        """Compare the recorded student with the teacher.

        Args:
            batch: the alignment keys of a batch of `AlignmentCollator`.
            records: one record per layer of `student_layers`. Two rows per pair, chosen rows first; or, with
                `token_index`, one packed row per pair.
            token_index: `(pairs, 2 * length)`, see `PackedPairs`.
            num_pairs: only the first `num_pairs` pairs count, if `is_aligned` too; all by default. (Distributed
                evaluation fills its last batch with pairs that were already evaluated.)
            visit: which visit of these pairs this is (the epoch from 1; 0 in evaluation). It decides the order in
                which the teacher reads the two responses.
            num_visits: visits that the run makes; with more than one, the cache stores both reading orders at once.
        """
        segments = batch["segments"].clone()
        pairs = len(segments)
        num_pairs = pairs if num_pairs is None else num_pairs
        counts = batch["is_aligned"] & (torch.arange(pairs, device=segments.device) < num_pairs)
        segments[~counts] = -1  # no unit of the other pairs counts
        margins, teacher_maps = self.read_teacher(batch, visit, num_visits)
        student_maps = self.simulate_student(batch, records, token_index)
        result = mean_alignment(
            [
                self.layer_loss(student, self._apply_control(teacher, segments), segments)
                for student, teacher in zip(student_maps, teacher_maps, strict=True)
            ]
        )
        num_counted = counts.sum().to(result.loss)
        scale = pairs / num_counted.clamp(min=1)
        loss = result.loss * scale
        metrics = {"loss": loss.detach(), **{scope: result.by_scope[scope] * scale for scope in ("intra", "inter")}}
        if self.teacher.is_fitted:
            correct = (margins.to(loss).sign() / 2 + 0.5).masked_fill(~counts, 0)  # ties count half
            metrics["teacher_accuracy"] = correct.sum() / num_counted.clamp(min=1)
        return AlignmentOutput(loss, metrics, result.divergences * scale, num_counted)

    def read_teacher(
        self, batch: dict[str, torch.Tensor], visit: int, num_visits: int
    ) -> tuple[torch.Tensor, list[MapSource]]:
        """The teacher's margins `(pairs,)` and one map source per layer, from the cache if there is one."""
        inputs = {key.removeprefix("teacher_"): value for key, value in batch.items() if key.startswith("teacher_")}
        order = choose_order(batch["pair_key"], self.settings.seed, visit)
        with self.autocast():
            if self.cached_teacher is None:
                return self.teacher.forward(inputs, order, self.settings.teacher_layers, batch["segments"].shape[1])
            return self.cached_teacher.forward(
                inputs,
                batch["map_key"],
                order,
                batch["segments"],
                is_caching_both_orders=1 < num_visits < sys.maxsize,  # a stream has sys.maxsize
            )

    def simulate_student(
        self, batch: dict[str, torch.Tensor], records: Sequence[RecordedAttention], token_index: torch.Tensor | None
    ) -> list[AttentionMap]:
        """One simulated map per record; arguments as in `__call__`."""
        index, units = batch["student_index"], batch["student_units"]
        if token_index is None:
            records = [concatenate_rows(record, len(index)) for record in records]
        else:
            index = token_index.gather(1, index)
        tokens = UnitTokens.from_units(units, units >= 0, batch["segments"].shape[1])
        return [student_map(record, index, tokens) for record in records]

    def layer_loss(
        self,
        student: AttentionMap,
        teacher: MapSource,
        segments: torch.Tensor,
        query_mask: torch.Tensor | None = None,
    ) -> AlignmentResult:
        """The loss of one layer pair; arguments as in `alignment_loss`."""
        return alignment_loss(
            student,
            teacher,
            segments,
            loss=self.settings.alignment_loss,
            scope=self.settings.alignment_scope,
            query_mask=query_mask,
            kernel=self.settings.alignment_kernel,
        )

    def _apply_control(self, source: MapSource, segments: torch.Tensor) -> MapSource:
        if self.settings.alignment_control == "uniform":
            return UniformMapSource(source)
        return shuffled_map_source(source, segments) if self.settings.alignment_control == "shuffled" else source
