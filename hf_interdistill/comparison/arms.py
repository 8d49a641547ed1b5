"""What is compared: recipes of `interdistill reward`, each under a name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from trl import ModelConfig, RewardConfig

from ..interaction.config import InteractionDistillationConfig
from ..interaction.loss_options import RewardLossOptions
from ..training.data_arguments import DataArguments
from ..training.output_dir import OutputDirArguments
from ..utils.option_names import field_names, rename_keys
from ..utils.parsing import given_values, parse, read_recipe
from .config import BASELINE, INTERACTION, UNALIGNED

RECIPE = (DataArguments, InteractionDistillationConfig, ModelConfig, OutputDirArguments)
# What the comparison sets itself, for each run.
_OWN = ("output_dir", "overwrite", "resume_from_checkpoint", "push_to_hub", "run_name")
_METHOD = (
    {each.name for each in fields(InteractionDistillationConfig)}
    - {each.name for each in (*fields(RewardConfig), *fields(RewardLossOptions))}
    - {"share_prompt"}
)
_LOSS = {each.name for each in fields(RewardLossOptions)} | {"label_smoothing_factor"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

Recipe = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """A recipe to compare.

    Args:
        name: in tables. settings: keys of `interdistill reward`, without those that the comparison sets.
        data, args, model: the same, parsed.
    """

    name: str
    settings: dict[str, Any]
    data: DataArguments
    args: InteractionDistillationConfig
    model: ModelConfig

    @property
    def is_aligned(self) -> bool:
        return bool(self.args.alignment_weight)

    def changed_from(self, other: Arm) -> dict[str, tuple[Any, Any]]:
        """Keys that differ in what is trained, with the other arm's value and this one's."""
        mine, theirs = self._effective(), other._effective()
        return {
            key: (theirs.get(key), mine.get(key)) for key in {**theirs, **mine} if theirs.get(key) != mine.get(key)
        }

    def _effective(self) -> dict[str, Any]:
        """All values that decide what is trained; without alignment the method's values do not count."""
        known = {
            each.name: getattr(part, each.name)
            for part in (self.data, self.args, self.model)
            for each in fields(part)
            if each.name not in (*_OWN, "logging_dir", "seed")
        }
        unused = () if self.is_aligned else _METHOD - {"alignment_weight"}
        return {name: value for name, value in known.items() if name not in unused}


def read_arms(recipe: Recipe, recipes: Mapping[str, Recipe], words: Sequence[str]) -> list[Arm]:
    """The baseline, the recipe itself, and further recipes.

    The baseline of a recipe with alignment is the recipe with `alignment_weight: 0`, so it has the recipe's options of
    the reward loss, too (`RewardLossOptions`). That of a recipe without alignment is the recipe without these options.

    Args:
        recipe: file, or mapping of keys to values. recipes: more of them by name.
        words: `--key value ...`, which change every recipe.

    Raises:
        ValueError: an unknown key, or a value of another kind; recipes that are equal; a setting with which a
            comparison is not fair.
    """
    main = _read(INTERACTION, recipe, words)
    main = main if main.is_aligned else replace(main, name=UNALIGNED)
    left_out = _METHOD if main.is_aligned else _METHOD | _LOSS
    plain = {key: value for key, value in main.settings.items() if key not in left_out}
    baseline = _parsed(BASELINE, {**plain, "alignment_weight": 0.0})
    if not main.changed_from(baseline):
        raise ValueError(
            "The recipe has `alignment_weight` 0 and no option of the reward loss, so `recipe` and `baseline` would "
            "be equal recipes. Name a recipe with a positive `alignment_weight`, or an option such as `tie_model`."
        )
    arms = [baseline, main]
    for name, other in recipes.items():
        if not _NAME.fullmatch(name) or name in (BASELINE, main.name):
            raise ValueError(
                f"A recipe is named {name!r}, but a name is one word of letters, digits, `.`, `_` and `-`, and not "
                f"`{BASELINE}` or `{main.name}`."
            )
        arms.append(_read(name, other, words))
    for number, arm in enumerate(arms):
        for earlier in arms[:number]:
            if not arm.changed_from(earlier):
                raise ValueError(
                    f"`{earlier.name}` and `{arm.name}` are equal recipes: nothing that is trained differs. Change "
                    "one, or leave it out."
                )
    for arm in arms[1:]:  # the baseline has what the recipe has
        _require_fair(arm)
    return arms


def named_recipes(given: Sequence[str] | None) -> dict[str, str]:
    """Recipes by name, of NAME=FILE each."""
    found: dict[str, str] = {}
    for each in given or []:
        name, is_pair, path = each.partition("=")
        if not is_pair or not path:
            raise ValueError(f"`recipes` has {each!r}, but each must be NAME=FILE, such as `smoothed=smoothed.yaml`.")
        if name in found:
            raise ValueError(f"`recipes` names `{name}` twice. Give each recipe a name of its own.")
        found[name] = path
    return found


def _read(name: str, recipe: Recipe, words: Sequence[str]) -> Arm:
    names = field_names(RECIPE)
    settings = rename_keys(recipe, names) if isinstance(recipe, Mapping) else read_recipe(str(recipe), RECIPE)
    if isinstance(recipe, Mapping):
        parsed = _parse_mapping(settings, words)
    else:
        parsed = parse(RECIPE, ["--config", str(recipe), *words])
    settings |= given_values(RECIPE, words)
    return _arm(name, settings, parsed)


def _parsed(name: str, settings: dict[str, Any]) -> Arm:
    return _arm(name, settings, _parse_mapping(settings, []))


def _arm(name: str, settings: dict[str, Any], parsed: tuple) -> Arm:
    kept = {key: value for key, value in settings.items() if key not in _OWN}
    return Arm(name, kept, *parsed[:3])


def _parse_mapping(settings: dict[str, Any], words: Sequence[str]) -> tuple:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return parse(RECIPE, ["--config", str(path), *words])


def _require_fair(arm: Arm) -> None:
    """Raise `ValueError` for a setting that chooses by the rows that are scored, or that no comparison can be made
    with."""
    if arm.args.load_best_model_at_end:
        raise ValueError(
            f"`load_best_model_at_end` is true in `{arm.name}`: it chooses a checkpoint by the rows that are scored. "
            "Leave it out."
        )
    if arm.data.dataset_streaming:
        raise ValueError(
            f"`dataset_streaming` is true in `{arm.name}`, but all rows are read to see whether a scored prompt is "
            "trained on. Leave it out."
        )
    if not arm.model.model_name_or_path:
        raise ValueError(f"`{arm.name}` has no `model_name_or_path`. Name the model to train.")
    if arm.is_aligned and not arm.args.teacher_model:
        raise ValueError(
            f"`{arm.name}` has `alignment_weight` {arm.args.alignment_weight}, but no `teacher_model`. Name a fitted "
            "teacher, or an encoder, which is then fitted once for all seeds."
        )
