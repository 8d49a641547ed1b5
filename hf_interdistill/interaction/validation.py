"""Checks of the arguments of `InteractionDistillationTrainer`; each error says how to fix it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from accelerate.utils import is_peft_model
from transformers.trainer_utils import IntervalStrategy
from trl.data_utils import get_dataset_column_names

from ..utils.fields import as_mapping
from ..utils.model_config import require_model
from ..utils.whole_models import hub_options
from .attention.interceptor import layer_of_modules
from .config import InteractionDistillationConfig
from .data.attributes import check_attribute_columns
from .data.dataset_checks import check_columns
from .data.labels import check_label_columns
from .data.rankings import check_ranking_options, is_ranked
from .grouping import check_grouping
from .teacher.teacher import InteractionTeacher

logger = logging.getLogger(__name__)


def check_arguments(args: InteractionDistillationConfig, given: Mapping[str, Any]) -> None:
    """Check what can be checked before anything is loaded or tokenized.

    Args:
        args: the config.
        given: the other arguments of `RewardTrainer` that were given, by name.

    Raises:
        TypeError, ValueError: datasets without rows or columns; evaluation without data; a model with several outputs;
            a layer that the model does not have.
        FileNotFoundError: `model` is a path without a model.
    """
    model, eval_dataset = given["model"], given.get("eval_dataset")
    if isinstance(eval_dataset, dict) and not eval_dataset:
        raise ValueError("`eval_dataset` is an empty mapping. Give it at least one dataset, or leave it out.")
    for name, dataset in named_datasets(given.get("train_dataset"), eval_dataset).items():
        check_columns(dataset, name, is_text_needed=bool(args.alignment_weight))
    if given.get("train_dataset") is not None:
        columns = get_dataset_column_names(given["train_dataset"])
        if args.attributes:
            check_attribute_columns(columns, "train")
        if is_ranked(columns):
            check_ranking_options(args)
        else:
            check_label_columns(columns, args)
        check_grouping(given["train_dataset"], args)
    if eval_dataset is None and args.eval_strategy != IntervalStrategy.NO:
        raise ValueError(
            f"`eval_strategy` is '{IntervalStrategy(args.eval_strategy).value}', but there is no `eval_dataset`. Pass "
            "one, or set `eval_strategy='no'`."
        )
    load_options = as_mapping("model_init_kwargs", args.model_init_kwargs)
    if not (isinstance(model, str) and (args.trust_remote_code or load_options.get("trust_remote_code"))):
        _check_model(model, load_options)


def _check_model(model: Any, load_options: dict[str, Any]) -> None:
    """Raise an error for a model that is not there, has several outputs, or is not a sequence classifier."""
    base: Any = model
    labels: Any = 1
    if isinstance(model, str):
        require_model("model", model, **hub_options(load_options, "trust_remote_code"))
    else:
        base = model.get_base_model() if is_peft_model(model) else model
        labels = getattr(model.config, "num_labels", None)
    if getattr(base, "can_generate", bool)():
        raise ValueError(
            f"The model is a {type(base).__name__}, a language model, but a reward model is a sequence classifier. "
            "Pass its name, or load it with `AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)`."
        )
    if labels != 1:
        raise ValueError(
            f"The model has `num_labels={labels}`, but a reward model has one output. Load it with `num_labels=1`; a "
            "classifier that was trained with other labels needs its base model, or `ignore_mismatched_sizes=True`."
        )


def named_datasets(train_dataset, eval_dataset) -> dict[str, Any]:
    """The datasets that there are by their names in messages."""
    sets = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
    return {name: dataset for name, dataset in {"train": train_dataset, **sets}.items() if dataset is not None}


def load_teacher(teacher, args: InteractionDistillationConfig) -> InteractionTeacher | None:
    """The teacher, loaded if it is given by name; `None` with `alignment_weight=0`.

    Args:
        teacher: an `InteractionTeacher`, a folder, a Hub name, or `None`.
        args: `teacher_model` is used if `teacher` is `None`.

    Raises:
        ValueError: alignment is on and there is no teacher.
    """
    if not args.alignment_weight:
        if teacher is not None or args.teacher_model is not None:
            logger.info("alignment_weight=0: the teacher is not used, training is RewardTrainer's.")
        return None
    teacher = teacher if teacher is not None else args.teacher_model
    if teacher is None:
        raise ValueError(
            f"`alignment_weight` is {args.alignment_weight}, but there is no teacher. Pass `teacher=` (an "
            "InteractionTeacher, a folder or a model name), set `teacher_model` in the config, or train with "
            "`alignment_weight=0`."
        )
    if isinstance(teacher, InteractionTeacher):
        return teacher
    return InteractionTeacher.from_pretrained(teacher)


def require_trainable_below(model, layers: list[int]) -> None:
    """Raise `ValueError` if an adapter trains no weight that the queries and keys of `layers` depend on, or adds keys
    to them."""
    if not is_peft_model(model):
        return
    if model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"The adapter is of the kind {model.active_peft_config.peft_type.value}, which puts keys of its own "
            "before those of the text, so the student's map would not be that of the text's tokens. Use LoRA, or "
            "train with `alignment_weight=0`."
        )
    layer_of = {
        id(parameter): layer
        for module, layer in layer_of_modules(model).items()
        for parameter in module.parameters(recurse=False)
    }
    highest = max(layers)
    trainable = [p for name, p in model.named_parameters() if p.requires_grad and ".score." not in name]
    if not any(layer_of.get(id(parameter), -1) <= highest for parameter in trainable):
        raise ValueError(
            f"The adapter trains nothing at or below layer {highest}, so the alignment loss at layers {layers} would "
            "train nothing. Put the adapter on lower layers, align a higher one (`student_layers`), or train with "
            "`alignment_weight=0`."
        )
