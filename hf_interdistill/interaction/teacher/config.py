"""Settings of a teacher's training."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from transformers import TrainingArguments

from ...training.label_smoothing import require_factor
from ...training.precision import choose_precision
from ...utils.fields import as_mapping, require_positive

_STAGES = "each stage of a teacher's training sets it"
_REFUSED = {
    **dict.fromkeys(("eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit"), _STAGES),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), _STAGES),
    **dict.fromkeys(("remove_unused_columns", "label_names"), _STAGES),
    **dict.fromkeys(
        ("neftune_noise_alpha", "batch_eval_metrics", "train_sampling_strategy"), "a teacher cannot be trained with it"
    ),
    "push_to_hub": "a teacher is never published",
}


@dataclass
class InteractionTeacherConfig(TrainingArguments):
    """Settings for `InteractionTeacher.fit`: those of `TrainingArguments` and the fields below.

    `label_smoothing_factor` is the probability that a label is wrong, as in `InteractionDistillationConfig`. `fit`
    itself decides when to evaluate and save, and keeps the weights with the lowest held-out loss.

    Args:
        teacher_model: encoder or causal language model to start from (command line only; `fit` has its model already).
        model_init_kwargs: options of `from_pretrained` for `teacher_model` (command line only), such as
            `{"num_hidden_layers": 12}` for the first 12 layers of a larger model.
        teacher_max_length: tokens per row (see `InteractionTeacher`); `None`: as many as the encoder can read.
        interaction_layers: top layers in which the two responses attend to each other (see `InteractionTeacher`);
            `None` leaves the teacher unchanged.
        warm_start_epochs: epochs on single responses before the pairs. Without them a pretrained encoder learns little
            from a few thousand pairs.
        num_train_epochs: epochs on pairs.
        eval_fraction: part of the prompts that is held out when `fit` is given no `eval_dataset`.
        early_stopping_patience: evaluations without a better held-out loss after which a stage stops.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]  # noqa: RUF012

    teacher_model: str | None = field(
        default=None, metadata={"help": "Encoder or causal language model to start from: Hub name or folder."}
    )
    model_init_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Options of from_pretrained, such as '{\"num_hidden_layers\": 12}'."}
    )
    teacher_max_length: int | None = field(default=None, metadata={"help": "Tokens per row; None: all it can read."})
    interaction_layers: int | None = field(
        default=None, metadata={"help": "Top layers in which the responses attend to each other; 0: all, in one row."}
    )
    warm_start_epochs: float = field(default=2.0, metadata={"help": "Epochs on single responses before the pairs."})
    num_train_epochs: float = field(default=2.0, metadata={"help": "Epochs on pairs."})
    eval_fraction: float = field(default=0.1, metadata={"help": "Part of the prompts held out for early stopping."})
    early_stopping_patience: int = field(default=3, metadata={"help": "Evaluations without progress before a stop."})
    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate of AdamW."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up steps; below 1, their fraction of all."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Pairs per device and step."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Pairs per device and evaluation step."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two logs."})
    evals_per_epoch: int = field(default=2, metadata={"help": "Held-out evaluations in each epoch."})

    def __post_init__(self):
        choose_precision(self)
        defaults = {each.name: each.default for each in fields(self)}
        for name, reason in _REFUSED.items():
            if getattr(self, name, None) != defaults.get(name):
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}, but {reason}. Leave it out; `evals_per_epoch` and "
                    "`early_stopping_patience` set when a stage is evaluated and stopped."
                )
        super().__post_init__()
        self.model_init_kwargs = as_mapping("model_init_kwargs", self.model_init_kwargs)
        require_factor(self.label_smoothing_factor)
        batches = ("per_device_train_batch_size", "per_device_eval_batch_size")
        for name in (*batches, "evals_per_epoch", "early_stopping_patience"):
            require_positive(name, getattr(self, name))
        require_positive("teacher_max_length", self.teacher_max_length, is_optional=True)
        if not 0 < self.eval_fraction < 1:
            raise ValueError(f"`eval_fraction` must lie between 0 and 1, got {self.eval_fraction}.")
        if not (self.warm_start_epochs >= 0 and self.num_train_epochs > 0):
            raise ValueError(
                f"`warm_start_epochs` ({self.warm_start_epochs}) must not be negative and `num_train_epochs` "
                f"({self.num_train_epochs}) must be positive."
            )
