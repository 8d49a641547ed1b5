"""Maps of one pair for inspection: the teacher's map and those that reward models simulate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
from .teacher.teacher import InteractionTeacher


@dataclass(frozen=True)
class PairMaps:
    """Maps of one pair on shared units.

    Args:
        units: text of each unit.
        segments: segment of each unit: 0 prompt, 1 chosen, 2 rejected.
        maps: by name, `(units, units)`; a row sums to 1 over the units that its model has read.
        divergences: by name, divergence of a student's map from the teacher's map in nats.
    """

    units: list[str]
    segments: list[int]
    maps: dict[str, torch.Tensor]
    divergences: dict[str, float]


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
    maps, divergences = {"teacher": _normalized(reference.values[0])}, {}
    tokens = UnitTokens.from_units(batch["student_units"], batch["student_units"] >= 0, units)
    for name, student in students.items():
        simulated = _simulated_map(student.model, batch, tokens, student_layer)
        divergences[name] = float(alignment_loss(simulated, reference, batch["segments"]).loss)
        rows = [simulated.pool(simulated.attend(a, b), a, b) for a, b in simulated.blocks()]
        maps[name] = _normalized(torch.cat(rows, 1)[0])
    return PairMaps(table.texts(), batch["segments"][0].tolist(), maps, divergences)


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
    """A figure with one panel per map: rows attend to columns, lines separate prompt, chosen and rejected."""
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # words and names with dollars are no formulas
        return _plot_maps(maps)


def _plot_maps(maps: PairMaps):
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    count, size = len(maps.maps), max(5.0, 0.13 * len(maps.units))
    figure = Figure(figsize=(size * count + 1, size + 0.4), layout="constrained")
    borders = [i for i in range(1, len(maps.segments)) if maps.segments[i] != maps.segments[i - 1]]
    top = max(float(values.max()) for values in maps.maps.values())
    for axis, (name, values) in zip(figure.subplots(1, count, squeeze=False)[0], maps.maps.items(), strict=True):
        image = axis.imshow(values.numpy(), cmap="magma", norm=PowerNorm(0.4, 0, top), interpolation="nearest")
        for border in borders:
            axis.axhline(border - 0.5, color="white", linewidth=0.8)
            axis.axvline(border - 0.5, color="white", linewidth=0.8)
        suffix = f"\n{maps.divergences[name]:.2f} nats from the teacher" if name in maps.divergences else ""
        axis.set_title(f"{name}{suffix}")
        axis.set_xticks(range(len(maps.units)), maps.units, rotation=90, fontsize=6)
        axis.set_yticks(range(len(maps.units)), maps.units, fontsize=6)
    figure.colorbar(image, ax=figure.axes, shrink=0.6, label="attention of row unit to column unit")
    parts = ["prompt", "chosen", "rejected"]
    figure.suptitle("Token interaction of one pair: " + " | ".join(parts[s] for s in sorted(set(maps.segments))))
    return figure
