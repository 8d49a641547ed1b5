"""`none` as the value of an optional option: it unsets what a recipe or a preset sets."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_type_hints

from .option_groups import is_ours, option_groups

_NONE = ("none", "null")  # in either case, as newer parsers of TRL read them for numbers
NONE_HELP = "`none` as the value of an option without a default unsets it."


def accept_none(parser: argparse.ArgumentParser, dataclass_types: Sequence[type]) -> None:
    """Let a parser read `none` as `None` for the optional fields that this package defines.

    Fields of TRL and transformers keep their own `none`, such as that of `report_to`.

    Args:
        parser: of these dataclasses. dataclass_types: as in `option_groups`.
    """
    optional = set()
    for kind, options in option_groups(dataclass_types):
        if is_ours(kind):
            hints = get_type_hints(kind)
            optional |= {each.name for each in options if type(None) in get_args(hints[each.name])}
    lists = {action.dest for action in parser._actions if action.dest in optional and action.nargs == "+"}
    for action in parser._actions:
        if action.dest in optional:
            action.type = _or_none(action.type or str)
    read = parser.parse_known_args

    def parse_known_args(*args: Any, **kwargs: Any) -> tuple[Any, list[str]]:
        found, rest = read(*args, **kwargs)
        for name in lists & vars(found).keys():
            setattr(found, name, _list_or_none(name, getattr(found, name)))
        return found, rest

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign]


def _or_none(kind: Any) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        return None if isinstance(value, str) and value.lower() in _NONE else kind(value)

    read.__name__ = getattr(kind, "__name__", "value")  # argparse shows it in its messages
    return read


def _list_or_none(name: str, values: Any) -> Any:
    """A list that was read value by value, or `None` for one `none`."""
    if not isinstance(values, list) or None not in values:
        return values
    if len(values) > 1:
        raise ValueError(
            f"Argument --{name}: `none` stands alone, but is one of {len(values)} values here. Leave it out, or the "
            "others."
        )
    return None
