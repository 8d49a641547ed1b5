"""What `InteractionDistillationTrainer` asks for before it begins, each with an error that says what to do."""

from __future__ import annotations

import logging
from pathlib import Path

from accelerate.utils import is_peft_model

from .attention.interceptor import layer_of_modules
from .config import InteractionDistillationConfig
from .teacher.teacher import InteractionTeacher

logger = logging.getLogger(__name__)


def load_teacher(teacher, args: InteractionDistillationConfig) -> InteractionTeacher | None:
    """The teacher itself, or loaded by name; `None` where nothing is aligned.

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
    """Raise `PermissionError` if nothing can be written in a folder.

    Args:
        option: that names the folder. folder: made if missing. loss: what would be lost.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".is_writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have been faster
    except OSError as error:
        raise PermissionError(
            f"`{option}` {folder!r} cannot be written ({error.strerror or error}); {loss}. "
            "Choose another folder or change its rights."
        ) from error


def require_trainable_below(model, layers: list[int]) -> None:
    """Raise if an adapter trains nothing that the recorded queries and keys depend on."""
    if not is_peft_model(model):
        return
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
