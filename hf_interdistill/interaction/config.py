"""Configuration of `InteractionDistillationTrainer`: TRL's `RewardConfig` plus the fields of the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy
from trl import RewardConfig

from ..training.label_smoothing import require_factor
from ..training.precision import choose_precision
from ..utils.fields import as_mapping, require_positive
from ..utils.whole_models import model_options
from .loss_options import LOSS_CHOICES, RewardLossOptions, check_loss_options
from .losses.alignment import ALIGNMENT_LOSSES, ALIGNMENT_SCOPES
from .losses.schedules import ALIGNMENT_SCHEDULES
from .losses.triton.dispatch import ALIGNMENT_KERNELS
from .map_cache.codec import MAP_PRECISIONS
from .prompt_sharing.sharing import SHARE_PROMPT_CHOICES

ALIGNMENT_CONTROLS = ("none", "uniform", "shuffled")
OBJECTIVE_CHOICES = {
    "alignment_loss": ALIGNMENT_LOSSES,
    "alignment_scope": ALIGNMENT_SCOPES,
    "alignment_control": ALIGNMENT_CONTROLS,
    "alignment_kernel": ALIGNMENT_KERNELS,
}


@dataclass
class InteractionDistillationConfig(RewardLossOptions, RewardConfig):
    """Configuration of `InteractionDistillationTrainer`: everything `RewardConfig` has, the fields below,
    and the options of the reward loss, which are in `RewardLossOptions`.

    Source: the method is that of arXiv 2508.02618; loss forms, scopes and defaults are ours.

    `label_smoothing_factor`, which `RewardTrainer` ignores, is the probability that a label is wrong: the reward loss
    is then cDPO's conservative one, `-(1 - factor) * log sigmoid(m) - factor * log sigmoid(-m)` for a margin m.

    Where neither `bf16` nor `fp16` is set, training is in bf16, as in `RewardConfig`. Where bf16 cannot run it is in
    float32, with a warning.

    Args:
        teacher_model: folder of a fitted teacher, or name of an encoder; the trainer's `teacher` argument takes
            precedence.
        teacher_max_length: tokens of a row of the teacher (prompt and one response, or both responses: see
            `InteractionTeacher`); longer rows lose their oldest prompt tokens. `None`: the teacher's own limit.
        alignment_weight: weight of the alignment loss, added to the reward loss; 0 trains exactly as `RewardTrainer`.
        alignment_schedule: `constant`, `linear_decay`, `cosine_decay` (to 0 at the end) or `warmup` (from 0 over the
            first tenth of the run).
        alignment_loss: `kl` (nats) or `mse`.
        alignment_scope: `joint` (whole rows), `intra` (the unit's own sequence), `inter` (the other response).
        alignment_control: `none`; `uniform` and `shuffled` replace the teacher's map, for controlled experiments.
        student_layers: student layers to align, negative from the end; paired in order with `teacher_layers`.
        teacher_layers: layers of the teacher.
        share_prompt: process prompt, chosen and rejected in one row, so that the prompt is computed once. Rewards and
            gradients equal those of two passes up to rounding. `auto`: wherever it saves tokens and the model supports
            it, except with `alignment_weight=0` (which equals `RewardTrainer` to the last bit); `true`: always;
            `false`: never.
        teacher_cache: folder for the teacher's maps, so that the teacher runs once per pair (in both reading orders).
            Later epochs, resumed runs and other runs with the same teacher read the maps from there. `None`: the
            teacher runs on every batch.
        teacher_cache_precision: `8bit` (one byte per weight) or `exact` (four).
        teacher_cache_top_k: weights stored per row with `8bit`, for long texts; the mass of the others is spread over
            the other units. `None`: all weights.
        alignment_kernel: `auto` (Triton kernels on a GPU that supports them, otherwise torch; the reason is logged),
            `torch`, or `triton` (an error where the kernels cannot run). Same loss and gradients up to rounding.
    """

    teacher_model: str | None = field(
        default=None, metadata={"help": "Folder of a fitted teacher, or name of an encoder."}
    )
    teacher_max_length: int | None = field(
        default=None, metadata={"help": "Tokens of a row of the teacher; unset: the teacher's own limit."}
    )
    alignment_weight: float = field(
        default=0.3, metadata={"help": "Weight of the alignment loss; 0 trains exactly as RewardTrainer."}
    )
    alignment_schedule: str = field(
        default="constant",
        metadata={"help": "Schedule of the weight over training.", "choices": list(ALIGNMENT_SCHEDULES)},
    )
    alignment_loss: str = field(
        default="kl", metadata={"help": "Divergence of teacher and student rows.", "choices": list(ALIGNMENT_LOSSES)}
    )
    alignment_scope: str = field(
        default="joint", metadata={"help": "Part of each row that is aligned.", "choices": list(ALIGNMENT_SCOPES)}
    )
    alignment_control: str = field(
        default="none",
        metadata={
            "help": "Replaces the teacher's map in controlled experiments.",
            "choices": list(ALIGNMENT_CONTROLS),
        },
    )
    student_layers: list[int] = field(
        default_factory=lambda: [-1], metadata={"help": "Student layers to align, negative from the end."}
    )
    teacher_layers: list[int] = field(
        default_factory=lambda: [-1], metadata={"help": "Teacher layers, paired in order with student_layers."}
    )

    share_prompt: str = field(
        default="auto",
        metadata={
            "help": "Process a pair in one row, so that the prompt is computed once.",
            "choices": list(SHARE_PROMPT_CHOICES),
        },
    )
    teacher_cache: str | None = field(
        default=None, metadata={"help": "Folder for the teacher's maps, so that it runs once per pair."}
    )
    teacher_cache_precision: str = field(
        default="8bit", metadata={"help": "Precision of stored maps.", "choices": list(MAP_PRECISIONS)}
    )
    teacher_cache_top_k: int | None = field(
        default=None, metadata={"help": "Weights stored per row of an 8-bit map; unset: all."}
    )
    alignment_kernel: str = field(
        default="auto",
        metadata={"help": "Implementation of the alignment loss.", "choices": list(ALIGNMENT_KERNELS)},
    )

    __repr__ = TrainingArguments.__str__  # the generated one would show `hub_token`

    def __post_init__(self):
        choose_precision(self)
        super().__post_init__()
        require_positive("max_length", self.max_length, is_optional=True)
        require_positive("teacher_max_length", self.teacher_max_length, is_optional=True)
        self.share_prompt = str(self.share_prompt).lower()  # YAML gives booleans, the command line gives words
        other_choices = {
            "alignment_schedule": tuple(ALIGNMENT_SCHEDULES),
            "share_prompt": SHARE_PROMPT_CHOICES,
            "teacher_cache_precision": MAP_PRECISIONS,
        }
        require_choices(self, {**OBJECTIVE_CHOICES, **LOSS_CHOICES, **other_choices})
        self.model_init_kwargs = _checked_init_kwargs(self.model_init_kwargs)
        require_factor(self.label_smoothing_factor)
        check_loss_options(self)
        if self.label_names:
            raise ValueError(
                f"`label_names` is {self.label_names}, but preferences have no labels and `RewardTrainer` clears it. "
                "Leave it out."
            )
        if not 0 <= self.alignment_weight < float("inf"):
            raise ValueError(f"`alignment_weight` is {self.alignment_weight}, but must be 0 or a positive number.")
        if len(self.student_layers) != len(self.teacher_layers) or not self.student_layers:
            raise ValueError(
                f"`student_layers` {self.student_layers} and `teacher_layers` {self.teacher_layers} are paired in "
                "order, so both need the same number of layers, at least one."
            )
        self._check_cache()
        if self.push_to_hub and self.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            strategy = HubStrategy(self.hub_strategy).value
            raise ValueError(
                f"`hub_strategy` is {strategy!r}, which uploads optimizer, scheduler and random states "
                "(pickles) with every checkpoint, but this trainer pushes the model only. Use 'every_save' or 'end'."
            )
        if self.alignment_weight and self.gradient_checkpointing:
            refuse_reentrant_checkpointing(self.gradient_checkpointing_kwargs)

    def _check_cache(self) -> None:
        top_k, precision = self.teacher_cache_top_k, self.teacher_cache_precision
        if self.teacher_cache is None and (top_k is not None or precision != "8bit"):
            raise ValueError(
                f"`teacher_cache_precision` is {precision!r} and `teacher_cache_top_k` {top_k}, but no maps are kept: "
                "set `teacher_cache` to a folder, or remove both."
            )
        if top_k is not None and (top_k < 1 or precision == "exact"):
            raise ValueError(
                f"`teacher_cache_top_k` is {top_k} and `teacher_cache_precision` {precision!r}, but the number of "
                "weights stored per row must be at least 1, and 'exact' stores all of them. Remove "
                "`teacher_cache_top_k`, or use '8bit' with a positive number."
            )


def _checked_init_kwargs(given: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """A copy of `model_init_kwargs`, checked for options that would be accepted and change nothing."""
    if given is None:
        return None
    options = model_options("model_init_kwargs", as_mapping("model_init_kwargs", given))
    if options.get("num_labels", 1) != 1:
        raise ValueError(
            f"`num_labels` in `model_init_kwargs` is {options['num_labels']}, but a reward model has one output. "
            "Leave it out."
        )
    if "output_loading_info" in options:
        raise ValueError(
            "`model_init_kwargs` has `output_loading_info`, but the trainer needs the model alone. Leave it out."
        )
    return options


def require_choices(settings: Any, choices: Mapping[str, Sequence[str]]) -> None:
    """Raise `ValueError` if an attribute of `settings` is not one of its choices."""
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            raise ValueError(f"`{name}` is {getattr(settings, name)!r}, but must be one of {', '.join(allowed)}.")


def refuse_reentrant_checkpointing(kwargs, is_set_by_trl: bool = False) -> None:
    """Raise `ValueError` for `use_reentrant=True`, of the user or of TRL."""
    if kwargs and kwargs.get("use_reentrant"):
        fix = "Set `use_reentrant` to False (or remove it), or train with `alignment_weight=0`."
        if is_set_by_trl:
            fix = (
                "TRL sets it for PEFT with DeepSpeed ZeRO-3. Set `gradient_checkpointing=False`, or shard with FSDP2 "
                "(`fsdp2.yaml`)."
            )
        raise ValueError(
            "`gradient_checkpointing_kwargs={'use_reentrant': True}`: reentrant checkpointing runs layers without a "
            f"graph, so the alignment loss would have no gradient. {fix}"
        )
