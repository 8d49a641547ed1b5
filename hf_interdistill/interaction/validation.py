"""Checks of the arguments of `InteractionDistillationTrainer`; each error says how to fix it."""

from __future__ import annotations

import logging
from pathlib import Path

from accelerate.utils import is_peft_model

from .attention.interceptor import layer_of_modules
from .config import InteractionDistillationConfig
from .teacher.teacher import InteractionTeacher

logger = logging.getLogger(__name__)


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


def require_writable(option: str, folder: str, loss: str) -> None:
    """Raise `PermissionError` if a folder is not writable.

    Args:
        option: name of the option, for the message.
        folder: created if missing.
        loss: what would be lost, for the message.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".is_writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have removed it
    except OSError as error:
        raise PermissionError(
            f"`{option}` {folder!r} cannot be written ({error.strerror or error}); {loss}. "
            "Choose another folder or change its permissions."
        ) from error


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
