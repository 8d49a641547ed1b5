"""Settings of `InteractionDistillationTrainer`: TRL's `RewardConfig` and a few fields."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy
from trl import RewardConfig

from .attention.recorder import ALIGNMENT_ROPES
from .losses.alignment import ALIGNMENT_LOSSES, ALIGNMENT_QUERIES, ALIGNMENT_SCOPES
from .losses.schedules import ALIGNMENT_SCHEDULES
from .losses.triton.dispatch import ALIGNMENT_KERNELS
from .map_cache.codec import MAP_PRECISIONS
from .prompt_sharing.sharing import SHARE_PROMPT_CHOICES

ALIGNMENT_CONTROLS = ("none", "uniform", "shuffled")


@dataclass
class InteractionDistillationConfig(RewardConfig):
    """Configuration of `InteractionDistillationTrainer`: everything `RewardConfig` has, and the fields below.

    Source: the method is that of arXiv 2508.02618; loss forms, scopes and defaults are ours.

    Args:
        teacher_model: folder of a fitted teacher, or name of an encoder; the trainer's `teacher` argument comes first.
        teacher_max_length: tokens of a row of the teacher (prompt and one response, or both responses: see
            `InteractionTeacher`); longer rows lose their oldest prompt tokens. `None` takes what the teacher can read.
        alignment_weight: weight of the alignment loss beside the reward loss; 0 trains exactly as `RewardTrainer`.
        alignment_schedule: `constant`, `linear_decay`, `cosine_decay` (to 0 at the end) or `warmup` (from 0 over the
            first tenth).
        alignment_loss: `kl` (nats) or `mse`.
        alignment_scope: `joint` (whole rows), `intra` (the unit's own sequence), `inter` (the other response).
        alignment_queries: units whose rows are aligned: `all`; `response` (no prompt); `last` (each response's last).
        alignment_rope: the student's queries and keys `after` rotary positions, as it compares them, or `before` them,
            so that its simulated map knows no distance (an error where the model has none, or turns only a part).
        alignment_control: `none`; `uniform` or `shuffled` replace the teacher's map in a controlled experiment.
        student_layers: student layers to align, negative from the end; paired in order with `teacher_layers`.
        teacher_layers: the teacher's layers.
        share_prompt: read prompt, chosen and rejected in one row, so that the prompt is computed once; rewards and
            gradients are those of two passes, to rounding. `auto`: wherever it saves work and the model can do it,
            except with `alignment_weight=0` (which equals `RewardTrainer` to the last bit); `true`: always; `false`.
        teacher_cache: folder in which the teacher's maps are kept, so that it reads each pair once (in both reading
            orders): later epochs, resumed runs and other runs with the same teacher take them from there. `None`: it
            reads each pair at each visit.
        teacher_cache_precision: `8bit` (a byte a number) or `exact` (four).
        teacher_cache_top_k: weights kept of each row with `8bit`, for long texts; what is left out of a row is spread
            over the other units. `None` keeps all.
        alignment_kernel: `auto` (Triton kernels on a GPU that can run them, torch elsewhere; the log says why),
            `torch`, or `triton` (an error where the kernels cannot run). Same loss and gradients up to rounding.
    """

    teacher_model: str | None = field(
        default=None, metadata={"help": "Folder of a fitted teacher, or name of an encoder."}
    )
    teacher_max_length: int | None = field(
        default=None, metadata={"help": "Tokens of a row of the teacher; unset: all it can read."}
    )
    alignment_weight: float = field(
        default=0.3, metadata={"help": "Weight of the alignment loss; 0 trains exactly as RewardTrainer."}
    )
    alignment_schedule: str = field(
        default="constant",
        metadata={"help": "Course of the weight over training.", "choices": list(ALIGNMENT_SCHEDULES)},
    )
    alignment_loss: str = field(
        default="kl", metadata={"help": "Divergence of teacher and student rows.", "choices": list(ALIGNMENT_LOSSES)}
    )
    alignment_scope: str = field(
        default="joint", metadata={"help": "Part of each row that is aligned.", "choices": list(ALIGNMENT_SCOPES)}
    )
    alignment_queries: str = field(
        default="all",
        metadata={"help": "Units whose rows are aligned.", "choices": list(ALIGNMENT_QUERIES)},
    )
    alignment_rope: str = field(
        default="after",
        metadata={"help": "The student's queries and keys after or before RoPE.", "choices": list(ALIGNMENT_ROPES)},
    )
    alignment_control: str = field(
        default="none",
        metadata={"help": "Replaces the teacher's map, for controls.", "choices": list(ALIGNMENT_CONTROLS)},
    )
    student_layers: list[int] = field(
        default_factory=lambda: [-1], metadata={"help": "Student layers to align, negative from the end."}
    )
    teacher_layers: list[int] = field(
        default_factory=lambda: [-1], metadata={"help": "Teacher layers, paired in order with student_layers."}
    )

    share_prompt: str = field(
        default="auto",
        metadata={"help": "Read a pair in one row: the prompt once.", "choices": list(SHARE_PROMPT_CHOICES)},
    )
    teacher_cache: str | None = field(
        default=None, metadata={"help": "Folder to keep the teacher's maps in, so that it reads each pair once."}
    )
    teacher_cache_precision: str = field(
        default="8bit", metadata={"help": "How maps are kept.", "choices": list(MAP_PRECISIONS)}
    )
    teacher_cache_top_k: int | None = field(
        default=None, metadata={"help": "Weights kept of each row of an 8-bit map; unset: all."}
    )
    alignment_kernel: str = field(
        default="auto",
        metadata={"help": "What computes the alignment loss.", "choices": list(ALIGNMENT_KERNELS)},
    )

    __repr__ = TrainingArguments.__str__  # the one that a dataclass gets would show `hub_token`

    def __post_init__(self):
        super().__post_init__()
        self.share_prompt = str(self.share_prompt).lower()  # YAML has booleans, the command line has words
        choices = {
            "alignment_schedule": tuple(ALIGNMENT_SCHEDULES),
            "alignment_loss": ALIGNMENT_LOSSES,
            "alignment_scope": ALIGNMENT_SCOPES,
            "alignment_queries": ALIGNMENT_QUERIES,
            "alignment_rope": ALIGNMENT_ROPES,
            "alignment_control": ALIGNMENT_CONTROLS,
            "share_prompt": SHARE_PROMPT_CHOICES,
            "teacher_cache_precision": MAP_PRECISIONS,
            "alignment_kernel": ALIGNMENT_KERNELS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}, but must be one of {', '.join(allowed)}.")
        if not 0 <= self.alignment_weight < float("inf"):
            raise ValueError(f"`alignment_weight` is {self.alignment_weight}, but must be 0 or a positive number.")
        if len(self.student_layers) != len(self.teacher_layers) or not self.student_layers:
            raise ValueError(
                f"`student_layers` {self.student_layers} and `teacher_layers` {self.teacher_layers} are paired in "
                "order, so both need the same number of layers, at least one."
            )
        self._check_cache()
        if self.push_to_hub and self.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"`hub_strategy` is {self.hub_strategy.value!r}, which uploads optimizer, scheduler and random states "
                "(pickles) with every checkpoint; what is pushed here is the model alone. Use 'every_save' or 'end'."
            )
        if self.alignment_weight and self.gradient_checkpointing:
            refuse_reentrant_checkpointing(self.gradient_checkpointing_kwargs)

    def _check_cache(self) -> None:
        top_k, precision = self.teacher_cache_top_k, self.teacher_cache_precision
        if self.teacher_cache is None and (top_k is not None or precision != "8bit"):
            raise ValueError(
                f"`teacher_cache_precision` is {precision!r} and `teacher_cache_top_k` {top_k}, but no maps are kept: "
                "set `teacher_cache` to a folder, or leave both out."
            )
        if top_k is not None and (top_k < 1 or precision == "exact"):
            raise ValueError(
                f"`teacher_cache_top_k` is {top_k} and `teacher_cache_precision` {precision!r}, but the number of "
                "weights kept of a row must be at least 1, and 'exact' keeps all of them. Leave `teacher_cache_top_k` "
                "out, or use '8bit' with a positive number."
            )


def refuse_reentrant_checkpointing(kwargs) -> None:
    """Raise `ValueError` for `use_reentrant=True`."""
    if kwargs and kwargs.get("use_reentrant"):
        raise ValueError(
            "`gradient_checkpointing_kwargs={'use_reentrant': True}`: reentrant checkpointing runs layers without a "
            "graph, so the alignment loss would have no gradient. Set `use_reentrant` to False (or leave it out), or "
            "train with `alignment_weight=0`."
        )
