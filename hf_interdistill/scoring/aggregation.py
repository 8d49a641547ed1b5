"""Combines the rewards of several reward models into one; the file that describes an ensemble.

Source: mean, worst-case (WCO) and uncertainty-weighted (UWO) optimization of Coste et al., arXiv 2310.02743.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from ..utils.atomic_io import write_atomically
from ..utils.fields import nearest_name, refuse_unknown
from ..utils.sources import require_file

ENSEMBLE_FILE = "reward_ensemble.json"
DEFAULT_WEIGHT = 0.5

AGGREGATIONS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "mean": lambda rewards, weight: rewards.mean(0),
    "worst": lambda rewards, weight: rewards.min(0).values,
    "uncertainty": lambda rewards, weight: rewards.mean(0) - weight * (rewards - rewards.mean(0)).square().mean(0),
}


@dataclass(frozen=True)
class Aggregation:
    """Combines the rewards of all members into one reward per text.

    Args:
        aggregation: `mean`; `worst`, the lowest reward; or `uncertainty`, the mean minus `uncertainty_weight` times
            the variance among members (divided by their number).
        uncertainty_weight: above 0, only with `uncertainty`, where it is 0.5 if not given.
        centers, scales: one per member: subtracted from its rewards, and what the result is divided by; `None` for
            rewards as they are.

    Raises:
        ValueError: an unknown aggregation; a weight, centers or scales that are out of range or do not apply.
    """

    aggregation: str = "mean"
    uncertainty_weight: float | None = None
    centers: Sequence[float] | None = None
    scales: Sequence[float] | None = None

    def __post_init__(self):
        if self.aggregation not in AGGREGATIONS:
            near = nearest_name(str(self.aggregation), AGGREGATIONS)
            hint = f" Is {near!r} meant?" if near else ""
            raise ValueError(f"`aggregation` is {self.aggregation!r}, but known are {', '.join(AGGREGATIONS)}.{hint}")
        weight = self.uncertainty_weight
        if self.aggregation != "uncertainty" and weight is not None:
            raise ValueError(
                f"`uncertainty_weight` is {weight!r}, but `aggregation` is {self.aggregation!r}, which has no weight. "
                "Leave it out, or set `aggregation` to 'uncertainty'."
            )
        if self.aggregation == "uncertainty":
            weight = DEFAULT_WEIGHT if weight is None else weight
            if not _is_finite(weight) or weight <= 0:
                raise ValueError(
                    f"`uncertainty_weight` is {weight!r}, but must be a finite number above 0. For no penalty set "
                    "`aggregation` to 'mean'."
                )
            object.__setattr__(self, "uncertainty_weight", float(weight))
        if (self.centers is None) != (self.scales is None):
            raise ValueError(
                f"`centers` is {self.centers!r} and `scales` {self.scales!r}: rewards are standardized with both. "
                "Give both or none; `calibrate` measures them."
            )
        for name in ("centers", "scales"):
            self._check_numbers(name)
        if self.centers is not None and len(self.centers) != len(self.scales or ()):
            raise ValueError(f"There are {len(self.centers)} `centers` and {len(self.scales or ())} `scales`.")

    def _check_numbers(self, name: str) -> None:
        values = getattr(self, name)
        if values is None:
            return
        if not isinstance(values, Sequence) or not all(map(_is_finite, values)):
            raise ValueError(f"`{name}` is {values!r}, but must hold a finite number for each member.")
        if name == "scales" and min(values, default=1.0) <= 0:
            raise ValueError(
                f"`scales` is {values!r}, but each must be above 0. Leave out a member of constant reward."
            )
        object.__setattr__(self, name, tuple(map(float, values)))

    def check_members(self, count: int) -> None:
        """Raise `ValueError` for fewer than two members, or a number of members other than that of the centers."""
        if count < 2:
            raise ValueError(f"The ensemble has {count} member, but needs at least two. Use `RewardScorer` for one.")
        if self.centers is not None and len(self.centers) != count:
            raise ValueError(
                f"`centers` has {len(self.centers)} numbers for {count} members. Give one for each, or calibrate."
            )

    def standardize(self, rewards: torch.Tensor) -> torch.Tensor:
        """Rewards `(members, texts)` of each member in its own units."""
        if self.centers is None or self.scales is None:
            return rewards
        return (rewards - rewards.new_tensor(self.centers)[:, None]) / rewards.new_tensor(self.scales)[:, None]

    def __call__(self, rewards: torch.Tensor) -> torch.Tensor:
        """One reward per text, from standardized ones `(members, texts)`."""
        return AGGREGATIONS[self.aggregation](rewards, self.uncertainty_weight or 0.0)


@dataclass(frozen=True)
class EnsembleFile:
    """What `reward_ensemble.json` holds.

    Args:
        members: folder or Hub name of each reward model, or the address of its `interdistill serve`. In the file, a
            path that begins with `.` counts from the folder that holds the file.
        rule: how their rewards become one; its fields stand beside `members`.
    """

    members: tuple[str, ...]
    rule: Aggregation

    def write(self, folder: str | os.PathLike) -> None:
        """Write the file into a folder; members that are folders are written as paths from there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        values = {"members": [_relative(name, folder) for name in self.members], **asdict(self.rule)}
        values = {key: value for key, value in values.items() if value is not None}
        write_atomically(folder / ENSEMBLE_FILE, json.dumps(values, indent=2) + "\n")

    @classmethod
    def read(cls, folder: str | os.PathLike) -> EnsembleFile:
        """The file of a folder, checked.

        Raises:
            ValueError: no JSON object; unknown or missing fields; values out of range.
        """
        path = require_file("reward_ensemble.json", Path(folder) / ENSEMBLE_FILE)
        try:
            values: Any = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} cannot be read as JSON ({error}). Write it with `save_pretrained`.") from None
        names = values.get("members") if isinstance(values, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"{path} must hold an object whose `members` lists the names of reward models.")
        settings = {key: value for key, value in values.items() if key != "members"}
        try:
            refuse_unknown("The ensemble", values, ("members", *(each.name for each in fields(Aggregation))))
            rule = Aggregation(**settings)
            rule.check_members(len(names))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return cls(tuple(_absolute(name, Path(folder)) for name in names), rule)


def is_ensemble(name: str | os.PathLike) -> bool:
    """Whether a folder holds an ensemble."""
    return (Path(name) / ENSEMBLE_FILE).is_file()


def is_address(name: str) -> bool:
    """Whether the name of a member is the address of a server."""
    return name.startswith(("http://", "https://"))


def _relative(name: str, folder: Path) -> str:
    path = Path(name)
    if is_address(name) or not path.is_dir():
        return name
    found = Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    return found if found.startswith(".") else f"./{found}"


def _absolute(name: str, folder: Path) -> str:
    return os.path.normpath(folder.resolve() / name) if name.startswith(".") else name


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
