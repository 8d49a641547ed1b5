"""Options of a command by group: the method's first, then ours, then those of TRL and transformers."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Sequence

from .option_names import field_names, short_names

_METHOD = ("Interaction", "CompareConfig", "Rain", "RewardLoss")  # names begin so, in this order
_MOST_CHOICES = 8  # longer lists are for the documentation


def option_groups(dataclass_types: Sequence[type]) -> list[tuple[type, list[dataclasses.Field]]]:
    """The fields of dataclasses under the class that defines (or redefines) each."""
    groups = [pair for each in dataclass_types for pair in _by_class(each).items()]
    return sorted(groups, key=lambda pair: (not is_ours(pair[0]), _rank(pair[0].__name__)))


def _rank(name: str) -> int:
    return next((i for i, start in enumerate(_METHOD) if name.startswith(start)), len(_METHOD))


def _by_class(dataclass_type: type) -> dict[type, list[dataclasses.Field]]:
    found: dict[type, list[dataclasses.Field]] = {}
    for each in dataclasses.fields(dataclass_type):
        if each.init:
            kinds = dataclass_type.__mro__
            owner = next(kind for kind in kinds if each.name in vars(kind).get("__annotations__", {}))
            found.setdefault(owner, []).append(each)
    return found


def is_ours(kind: type) -> bool:
    """Whether this package defines a class."""
    return kind.__module__.startswith("hf_interdistill")


def group_title(kind: type) -> str:
    """The title of a group of options, from its docstring, without a full stop."""
    line = (inspect.getdoc(kind) or kind.__name__).splitlines()[0]
    return re.split(r"[:;]|\.(?= |$)", line)[0]


class _HelpFormatter(argparse.HelpFormatter):
    """Says `required` or the default, but no default of `None`."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.choices is not None and len(list(action.choices)) <= _MOST_CHOICES:
            text += f" (one of {', '.join(map(str, action.choices))})"
        if action.required:
            return f"{text} (required)"
        default = getattr(action.default, "value", action.default)  # of an enum
        if default in (None, "", argparse.SUPPRESS) or isinstance(action, argparse._HelpAction):
            return text
        return f"{text} (default: %(default)s)"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """The option with its value once, without the same name in dashes."""
        names = [name for name in action.option_strings if "-" not in name.lstrip("-")] or action.option_strings
        if action.nargs == 0:
            return ", ".join(names)
        values = "FILE" if action.dest == "config" else "VALUE ..." if action.nargs == "+" else "VALUE"
        return f"{', '.join(names)} {values}"


def describe_by_group(
    parser: argparse.ArgumentParser, dataclass_types: Sequence[type], is_launched: bool = False
) -> None:
    """Give a parser of these dataclasses a help text by group. What it parses stays as it is.

    Args:
        parser: of these dataclasses. dataclass_types: as in `option_groups`.
        is_launched: whether the command takes the options of `utils.launching`.
    """
    parser.usage = f"{parser.prog} [--config recipe.yaml] [--key value ...]"
    parser.formatter_class = _HelpFormatter
    actions: dict[str, list[argparse.Action]] = {}
    for action in parser._actions:
        actions.setdefault(action.dest, []).append(action)
    for name, other in short_names(field_names(dataclass_types)).items():
        for action in actions[name]:
            action.help = f"{(action.help or '').rstrip('.')}; also --{other}."
    general = parser.add_argument_group("General")
    general.add_argument("--config", help="YAML file of keys and values; options on the line go first.")
    if is_launched:
        general.add_argument("--num_processes", help="Processes that accelerate starts.")
        general.add_argument("--accelerate_config", help="Configuration of accelerate: file, or name of TRL's.")
    general._group_actions += actions.pop("help", [])
    for kind, options in option_groups(dataclass_types):
        group = parser.add_argument_group(group_title(kind) if is_ours(kind) else f"Options of {kind.__name__}")
        for each in options:
            group._group_actions += actions.pop(each.name, [])
    parser._action_groups = [group for group in parser._action_groups if group._group_actions]
    parser._optionals._group_actions = []
    parser._action_groups = [group for group in parser._action_groups if group is not parser._optionals]
