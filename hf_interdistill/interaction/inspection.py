"""Maps of one pair for inspection: the teacher's map and those that reward models simulate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..scoring.scorer import RewardScorer
from ..utils.model_config import text_config
from .attention.map_sources import DenseMapSource, dense
from .attention.maps import UnitTokens, concatenate_rows, student_map
from .attention.recorder import AttentionRecorder, resolve_layers
from .data.collator import AlignmentCollator
from .data.preference_tokenizer import PreferenceTokenizer
from .losses.alignment import alignment_loss
from .losses.explained import ExplainedShare
from .teacher.teacher import InteractionTeacher

_PARTS = ("prompt", "chosen", "rejected")
_MOST_TIMES = 16.0  # end of the color scale: this many times the equal share, or more
_TICKS = (1 / 16, 1 / 4, 1, 4, 16)


@dataclass(frozen=True)
class PairMaps:
    """Maps of one pair on shared units.

    Args:
        units: text of each unit.
        segments: segment of each unit: 0 prompt, 1 chosen, 2 rejected.
        maps: by name, `(units, units)`; a row sums to 1 over the units that its model has read.
        divergences: by name, divergence of a student's map from the teacher's map in nats.
        explained: by name, share of the teacher's map that a student's map explains, see `ExplainedShare`.
    """

    units: list[str]
    segments: list[int]
    maps: dict[str, torch.Tensor]
    divergences: dict[str, float]
    explained: dict[str, float] = field(default_factory=dict)

    def with_students_of(self, other: PairMaps) -> PairMaps:
        """These maps and those of the students of `other`, which are of the same pair and teacher."""
        return replace(
            self,
            maps=self.maps | other.maps,
            divergences=self.divergences | other.divergences,
            explained=self.explained | other.explained,
        )


@torch.no_grad()
def pair_maps(
    example: Mapping[str, Any],
    teacher: InteractionTeacher,
    students: Mapping[str, RewardScorer],
    *,
    student_layer: int = -1,
    teacher_layer: int = -1,
) -> PairMaps:
    """The teacher's map (mean over both reading orders) and each student's simulated map of one preference.

    Args:
        example: a preference row of any format.
        teacher: the teacher.
        students: reward models by name; they must share one tokenizer, which defines the units.
        student_layer, teacher_layer: layers to map, negative from the end.
    """
    tokenizer = next(iter(students.values())).tokenizer
    columns, table = PreferenceTokenizer(tokenizer, teacher.tokenizer).encode(dict(example), 0)
    batch = AlignmentCollator(_reward_collator(tokenizer.pad_token_id), teacher.layout)([columns])
    units = batch["segments"].shape[1]
    inputs = {key.removeprefix("teacher_"): value for key, value in batch.items() if key.startswith("teacher_")}
    sources = [teacher.forward(inputs, torch.tensor([order]), [teacher_layer], units)[1][0] for order in (0, 1)]
    reference = DenseMapSource(torch.stack([dense(source).cpu() for source in sources]).mean(0))
    maps, divergences, explained = {"teacher": _normalized(reference.values[0])}, {}, {}
    tokens = UnitTokens.from_units(batch["student_units"], batch["student_units"] >= 0, units)
    for name, student in students.items():
        simulated = _simulated_map(student.model, batch, tokens, student_layer)
        result, share = alignment_loss(simulated, reference, batch["segments"]), ExplainedShare()
        share.add(result.divergences)
        divergences[name] = float(result.loss)
        found = share.take()
        if "explained" in found:  # else the teacher's map is uniform
            explained[name] = found["explained"]
        rows = [simulated.pool(simulated.attend(a, b), a, b) for a, b in simulated.blocks()]
        maps[name] = _normalized(torch.cat(rows, 1)[0])
    return PairMaps(table.texts(), batch["segments"][0].tolist(), maps, divergences, explained)


def _reward_collator(pad_id: int):
    from trl.trainer.reward_trainer import DataCollatorForPreference

    return DataCollatorForPreference(pad_token_id=pad_id)


def _simulated_map(model: nn.Module, batch: dict, tokens: UnitTokens, layer: int):
    layer = resolve_layers([layer], text_config(model).num_hidden_layers, "student_layer")[0]
    with AttentionRecorder(model, [layer]) as recorder:
        model(
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            use_cache=False,
        )
    record = recorder.records[0]
    record = type(record)(record.query.cpu(), record.key.cpu(), record.scaling, record.softcap, record.window)
    return student_map(concatenate_rows(record), batch["student_index"], tokens)


def _normalized(values: torch.Tensor) -> torch.Tensor:
    return values / values.sum(-1, keepdim=True).clamp(min=1e-12)


def plot_maps(maps: PairMaps):
    """A figure with one panel per map, all on one scale.

    Rows attend to columns; lines separate prompt, chosen and rejected. The color is the share of a row's attention
    that a unit gets, as a multiple of the equal share `1 / units`.
    """
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # dollar signs in words and names do not start formulas
        return _plot_maps(maps)


def _plot_maps(maps: PairMaps):
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    units, count = len(maps.units), len(maps.maps)
    size = max(4.5, 0.11 * units)
    figure = Figure(figsize=(size * count + 1.5, size + 1.6), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False, sharey=True)[0]
    norm = LogNorm(1 / _MOST_TIMES, _MOST_TIMES, clip=True)
    for axis, (name, values) in zip(axes, maps.maps.items(), strict=True):
        image = axis.imshow(values.numpy() * units, cmap="RdBu_r", norm=norm, interpolation="nearest")
        _mark_segments(axis, maps.segments)
        found = ""
        if name in maps.divergences:
            share = maps.explained.get(name)
            explained = "" if share is None else f"explained share {share:.2f}, "
            found = f": {explained}{maps.divergences[name]:.2f} nats from the teacher"
        axis.set_title(f"{name}{found}", fontsize=11, pad=16)
        axis.set_xticks(range(units), maps.units, rotation=90, fontsize=6)
        axis.tick_params(length=0, pad=1)
    axes[0].set_yticks(range(units), maps.units, fontsize=6)
    axes[0].set_ylabel("a word of this row attends to ...")
    for axis in axes:
        axis.set_xlabel("... the word of this column")
    bar = figure.colorbar(image, ax=list(axes), shrink=0.7, pad=0.01, extend="both")
    bar.set_label("attention, times the equal share of a word")
    bar.set_ticks(_TICKS, labels=[f"{tick:g}" if tick >= 1 else f"1/{1 / tick:g}" for tick in _TICKS])
    bar.minorticks_off()
    if maps.explained:
        figure.suptitle(
            "Explained share: 1 is the teacher's map, 0 is equal attention to all words, less is farther than that",
            fontsize=10,
        )
    return figure


def _mark_segments(axis, segments: Sequence[int]) -> None:
    """Lines between prompt, chosen and rejected, and their names above the panel."""
    starts = [i for i in range(len(segments)) if i == 0 or segments[i] != segments[i - 1]]
    for start, stop in zip(starts, [*starts[1:], len(segments)], strict=True):
        if start:
            axis.axhline(start - 0.5, color="black", linewidth=1)
            axis.axvline(start - 0.5, color="black", linewidth=1)
        middle = (start + stop - 1) / 2
        axis.annotate(
            _PARTS[segments[start]], (middle, -0.5), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8
        )
