"""The weights of several outputs in the reward, as given by the user."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..utils.fields import nearest_name
from ..utils.sources import require_file

Weights = Sequence[str] | Mapping[str, float]


def mix_of(labels: Sequence[str], weights: Weights | None, positive_label: str | None, what: str) -> Tensor:
    """The weight of each output, `(outputs,)`; 1 for a single output.

    Args:
        labels: names of the outputs.
        weights: `NAME=NUMBER` each, or one JSON file with an object of numbers by name, or that object; an output may
            also be given by its number.
        positive_label: of two outputs, the one that is better: the reward is its logit minus the other's.
        what: the model, for messages.

    Raises:
        ValueError: several outputs without weights; weights for one output; an unknown name, or no number.
    """
    if len(labels) == 1:
        if weights or positive_label is not None:
            raise ValueError(
                f"{what} has one output, which is the reward, so `weights` and `positive_label` would change nothing. "
                "Leave them out."
            )
        return torch.ones(1)
    if positive_label is not None:
        if weights or len(labels) != 2:
            raise ValueError(
                f"`positive_label` is {positive_label!r}, which is for two outputs and without `weights`; {what} has "
                f"{len(labels)}. Give `weights` alone."
            )
        mix = -torch.ones(2)
        mix[_number(positive_label, labels, "positive_label")] = 1.0
        return mix
    shown = ", ".join(f"{number}: {label}" for number, label in enumerate(labels))
    if not weights:
        fix = f"Give what each counts: `--weights {_word(labels[0])}=1 ...`, or a JSON file."
        if len(labels) == 2:
            fix = (
                f"Give `--positive_label {_word(labels[1])}` (or {_word(labels[0])}) for the difference of their "
                f"logits, or `--weights {_word(labels[1])}=1` for one logit alone."
            )
        raise ValueError(
            f"{what} has {len(labels)} outputs ({shown}), and it is undecided which of them is the reward. {fix}"
        )
    mix = torch.zeros(len(labels))
    seen = set()
    for name, value in _pairs(weights).items():
        number = _number(name, labels, "weights")
        if number in seen:
            raise ValueError(f"`weights` names the output {number} ({labels[number]}) twice. Name it once.")
        seen.add(number)
        mix[number] = value
    if not mix.any():
        raise ValueError("`weights` are all zero, so every text would have the same reward. Give one that is not.")
    return mix


def _pairs(weights: Weights) -> dict[str, float]:
    given: list[tuple[Any, Any]]
    if isinstance(weights, Mapping):
        given = list(weights.items())
    elif len(weights) == 1 and "=" not in weights[0]:
        path = require_file("weights", weights[0])
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"`weights` is {weights[0]!r}, which is not valid JSON: {error}. Correct it.") from None
        if not isinstance(content, dict):
            raise ValueError(f'`weights` is {weights[0]!r}, which must hold an object such as {{"helpful": 0.7}}.')
        given = list(content.items())
    else:
        given = [(name, value) for name, _, value in (each.rpartition("=") for each in weights)]
    found: dict[str, float] = {}
    for key, value in given:
        name = str(key)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not name or not math.isfinite(number):
            raise ValueError(
                f"`weights` has {name or '(no name)'}={value!r}, but each must be NAME=NUMBER, with a finite number. "
                "Correct it."
            )
        if name in found:
            raise ValueError(f"`weights` names {name!r} twice. Name it once.")
        found[name] = number
    return found


def _number(name: str, labels: Sequence[str], option: str) -> int:
    if name in labels:
        if list(labels).count(name) > 1:
            raise ValueError(f"`{option}` names {name!r}, which several outputs are called. Give the output's number.")
        return list(labels).index(name)
    if name.isdecimal() and int(name) < len(labels):
        return int(name)
    near = nearest_name(name, labels)
    hint = "" if near is None else f" Did you mean {near!r}?"
    raise ValueError(
        f"`{option}` names {name!r}, but the outputs are {', '.join(labels)}, or 0 to {len(labels) - 1}.{hint}"
    )


def _word(label: str) -> str:
    """A label as a user types it."""
    return f"'{label}'" if " " in label else label
