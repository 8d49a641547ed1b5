"""Settings of `InteractionDistillationTrainer`: TRL's `RewardConfig` and a few fields."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy
from trl import RewardConfig

from .losses import ALIGNMENT_LOSSES, ALIGNMENT_SCOPES
from .schedules import ALIGNMENT_SCHEDULES
from .sharing import SHARE_PROMPT_CHOICES

ALIGNMENT_CONTROLS = ("none", "uniform", "shuffled")


@dataclass
class InteractionDistillationConfig(RewardConfig):
    """Configuration of `InteractionDistillationTrainer`: everything `RewardConfig` has, and the fields below.

    Source: the method is that of arXiv 2508.02618; loss forms, scopes and defaults are ours.

    Args:
        teacher_model: folder of a fitted teacher, or name of an encoder; the trainer's `teacher` argument comes first.
        teacher_max_length: tokens of a whole pair for the teacher; longer pairs lose their oldest prompt tokens.
            `None` takes what the teacher can read.
        alignment_weight: weight of the alignment loss beside the reward loss; 0 trains exactly as `RewardTrainer`.
        alignment_schedule: `constant`, `linear_decay`, `cosine_decay` (to 0 at the end) or `warmup` (from 0 over the
            first tenth).
        alignment_loss: `kl` (nats) or `mse`.
        alignment_scope: `joint` (whole rows), `intra` (the unit's own sequence), `inter` (the other response).
        alignment_control: `none`; `uniform` or `shuffled` replace the teacher's map in a controlled experiment.
        student_layers: student layers to align, negative from the end; paired in order with `teacher_layers`.
        teacher_layers: the teacher's layers.
        share_prompt: read prompt, chosen and rejected in one row, so that the prompt is computed once; rewards and
            gradients are those of two passes, to rounding. `auto`: wherever it saves work and the model can do it,
            except with `alignment_weight=0` (which equals `RewardTrainer` to the last bit); `true`: always; `false`.
    """

    teacher_model: str | None = field(
        default=None, metadata={"help": "Folder of a fitted teacher, or name of an encoder."}
    )
    teacher_max_length: int | None = field(
        default=None, metadata={"help": "Tokens of a whole pair for the teacher; unset: all it can read."}
    )
    alignment_weight: float = field(
        default=0.1, metadata={"help": "Weight of the alignment loss; 0 trains exactly as RewardTrainer."}
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

    __repr__ = TrainingArguments.__str__  # the one that a dataclass gets would show `hub_token`

    def __post_init__(self):
        super().__post_init__()
        self.share_prompt = str(self.share_prompt).lower()  # YAML has booleans, the command line has words
        choices = {
            "alignment_schedule": tuple(ALIGNMENT_SCHEDULES),
            "alignment_loss": ALIGNMENT_LOSSES,
            "alignment_scope": ALIGNMENT_SCOPES,
            "alignment_control": ALIGNMENT_CONTROLS,
            "share_prompt": SHARE_PROMPT_CHOICES,
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
        if self.push_to_hub and self.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"`hub_strategy` is {self.hub_strategy.value!r}, which uploads optimizer, scheduler and random states "
                "(pickles) with every checkpoint; what is pushed here is the model alone. Use 'every_save' or 'end'."
            )
        if self.alignment_weight and self.gradient_checkpointing:
            refuse_reentrant_checkpointing(self.gradient_checkpointing_kwargs)


def refuse_reentrant_checkpointing(kwargs) -> None:
    """Raise `ValueError` for `use_reentrant=True`."""
    if kwargs and kwargs.get("use_reentrant"):
        raise ValueError(
            "`gradient_checkpointing_kwargs={'use_reentrant': True}`: reentrant checkpointing runs layers without a "
            "graph, so the alignment loss would have no gradient. Set `use_reentrant` to False (or leave it out), or "
            "train with `alignment_weight=0`."
        )
