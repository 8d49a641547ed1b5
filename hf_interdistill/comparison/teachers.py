"""The teachers of a comparison: given by name, or fitted once on the rows that the models train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..interaction.teacher.config import InteractionTeacherConfig
from ..interaction.teacher.files import load_head_and_state
from ..scoring.model_digests import digest_of_model
from ..training.data_arguments import DataArguments
from ..utils.launching import launcher
from ..utils.model_config import require_model
from ..utils.parsing import parse, read_recipe
from .arms import Arm
from .config import CompareConfig
from .data import ComparisonData
from .runs import Training

# Keys of the recipe that also apply to the teacher, where it has no recipe of its own.
_SHARED = (
    "teacher_max_length",
    "use_cpu",
    "bf16",
    "fp16",
    "report_to",
    "disable_tqdm",
    "dataloader_pin_memory",
    "seed",
)
_OWN = ("output_dir", "resume_from_checkpoint", "dataset_name", "dataset_config")


@dataclass(frozen=True)
class TeacherPlan:
    """The teacher of some arms.

    Args:
        name: folder or Hub name of the fitted teacher. digest: of what it is, or of what it is fitted with.
        training: how it is fitted; `None` if it was given.
    """

    name: str
    digest: str
    training: Training | None


def require_use(arms: Sequence[Arm], config: CompareConfig) -> None:
    """Raise `ValueError` for a `teacher_config` where no arm has a teacher."""
    if config.teacher_config is not None and not any(arm.is_aligned for arm in arms):
        raise ValueError(
            f"`teacher_config` is {config.teacher_config!r}, but changes nothing: every recipe has `alignment_weight` "
            "0. Leave it out, or name a recipe with a positive `alignment_weight`."
        )


def plan_teacher(arm: Arm, data: ComparisonData, config: CompareConfig) -> TeacherPlan | None:
    """The teacher of an arm, `None` if it has no alignment.

    Raises:
        ValueError: `teacher_config` is given for a teacher that is fitted already, or is not a recipe of a teacher.
    """
    if not arm.is_aligned:
        return None
    name = str(arm.args.teacher_model)
    require_model("teacher", name)
    if load_head_and_state(name, {}) is not None:
        if config.teacher_config is not None:
            raise ValueError(
                f"`teacher_config` is {config.teacher_config!r}, but `teacher_model` of `{arm.name}` is {name}, a "
                "teacher that is fitted already. Leave `teacher_config` out, or name the encoder as `teacher_model`."
            )
        return TeacherPlan(name, digest_of_model(name), None)
    settings = _settings(arm, data, config)
    digests = {"training rows": data.digests[arm.name], "encoder": digest_of_model(name)}
    content = repr((sorted(settings.items(), key=str), digests))
    digest = blake2b(content.encode(), digest_size=4).hexdigest()
    folder = Path(config.output) / "teachers" / arm.name
    words = launcher(config.num_processes, config.accelerate_config)
    return TeacherPlan(str(folder), digest, Training("teacher", folder, settings, digests, words))


def _settings(arm: Arm, data: ComparisonData, config: CompareConfig) -> dict[str, Any]:
    """Keys of `interdistill teacher`, checked by its parser."""
    if config.teacher_config is None:
        settings = {key: arm.settings[key] for key in _SHARED if key in arm.settings}
    else:
        kinds = (DataArguments, InteractionTeacherConfig)
        settings = {key: value for key, value in read_recipe(config.teacher_config, kinds).items() if key not in _OWN}
        given = ["--config", config.teacher_config, "--teacher_model", str(arm.args.teacher_model)]
        parse(kinds, [*given, "--dataset_name", arm.data.dataset_name])
    keys = ("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split")
    rows = {key: arm.settings[key] for key in keys if key in arm.settings}
    return {**settings, "teacher_model": arm.args.teacher_model, **rows, **data.changes[arm.name]}


def shared_teachers(plans: dict[str, TeacherPlan]) -> dict[str, TeacherPlan]:
    """The plans with one teacher for all arms that would fit the same one."""
    first: dict[str, TeacherPlan] = {}
    return {arm: first.setdefault(plan.digest, plan) for arm, plan in plans.items()}
