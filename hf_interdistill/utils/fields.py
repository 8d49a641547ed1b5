"""Names of fields: unknown ones are refused with the nearest known one, renamed ones are taken with a warning."""

from __future__ import annotations

import difflib
import functools
import json
import math
import os
import types
import warnings
from collections.abc import Iterable
from dataclasses import fields
from numbers import Real
from typing import Any, Union, get_args, get_origin, get_type_hints


class UnknownFieldError(TypeError, ValueError):
    """A field or key that does not exist."""


def nearest_name(name: str, known: Iterable[str], cutoff: float = 0.4) -> str | None:
    """The most similar known name, or `None` if none is similar.

    Args:
        name: what was written. known: what exists.
        cutoff: least similarity, from 0 (any) to 1 (equal), as in `difflib.get_close_matches`.
    """
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def refuse_unknown(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `UnknownFieldError` for the first name of `given` that is not in `known`, naming the nearest."""
    known = list(known)
    for name in given:
        if name not in known:
            raise UnknownFieldError(
                f"{kind} has no field `{name}`; the nearest is `{nearest_name(name, known, cutoff=0.0)}`. "
                f"Fields: {', '.join(known)}."
            )


def new_names(kind: str, values: dict[str, Any], renamed: dict[str, str]) -> dict[str, Any]:
    """`values` with renamed fields under their new names; a `FutureWarning` names each.

    Raises:
        UnknownFieldError: a field given by both names.
    """
    result = dict(values)
    for old, new in renamed.items():
        if old not in result:
            continue
        if new in result:
            raise UnknownFieldError(f"{kind} was given `{old}` and `{new}`, which are one field. Leave out `{old}`.")
        warnings.warn(f"`{old}` of {kind} is now `{new}`; the old name will be removed.", FutureWarning, stacklevel=3)
        result[new] = result.pop(old)
    return result


def accept_renamed(renamed: dict[str, str]):
    """Class decorator of dataclasses: constructor and attributes take old names of fields too, with a warning.

    Args:
        renamed: new name of each old one.
    """

    def decorate(cls):
        construct = cls.__init__

        @functools.wraps(construct)
        def init(self, *args, **kwargs):
            construct(self, *args, **new_names(cls.__name__, kwargs, renamed))

        def get_attribute(self, name):  # only called for names that are not attributes
            if name in renamed:
                new_names(cls.__name__, {name: None}, renamed)
                return getattr(self, renamed[name])
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

        cls.__init__, cls.__getattr__ = init, get_attribute
        return cls

    return decorate


def as_mapping(name: str, value: Any) -> dict[str, Any]:
    """A setting that is a dictionary, on the command line JSON.

    Raises:
        ValueError: neither a dictionary nor JSON of one.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"`{name}` is {value!r}, but must be JSON such as '{{\"seed\": 1}}' ({error}).") from None
    if not isinstance(value, dict | None):
        raise ValueError(f"`{name}` is {value!r}, but must be a mapping of keys to values.")
    return value or {}


_RULES = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}


def require_kinds(settings: Any) -> None:
    """Check the fields of a dataclass against their types, as YAML and Python code may give anything.

    Fields of type `str`, `bool`, `int` and `float`, each with `None` or not, are checked; paths become texts.

    Raises:
        ValueError: a value of another kind; NaN.
    """
    hints = get_type_hints(type(settings))
    for each in fields(settings):
        hint, value = hints[each.name], getattr(settings, each.name)
        kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        if not set(kinds) <= set(_RULES):
            continue
        if isinstance(value, os.PathLike) and str in kinds:
            object.__setattr__(settings, each.name, os.fspath(value))
        elif not any(_is_of_kind(value, kind) for kind in kinds):
            rule = " or ".join(_RULES[kind] for kind in kinds)
            raise ValueError(f"`{each.name}` is {value!r}, but must be {rule}.")


def _is_of_kind(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or kind not in (int, float):
        return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    return isinstance(value, int) if kind is int else isinstance(value, Real) and value == value


def require_positive(name: str, value: Any, *, is_optional: bool = False) -> None:
    """Raise `ValueError` for a setting that is not a whole number of at least 1; with `is_optional`, `None` passes."""
    if value is None and is_optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` is {value!r}, but must be a whole number of at least 1.")


def refuse_unused(settings: Any, used: dict[str, tuple[bool, str]]) -> None:
    """Raise `ValueError` for a field of a dataclass that is set where it changes nothing.

    Args:
        settings: the dataclass. used: for each field whether it counts, and what it needs to count.
    """
    defaults = {each.name: each.default for each in fields(settings)}
    for name, (is_used, needs) in used.items():
        if not is_used and getattr(settings, name) != defaults[name]:
            raise ValueError(f"`{name}` changes nothing without {needs}. Set that too, or leave it out.")


def require_above_zero(name: str, value: Any) -> None:
    """Raise `ValueError` for a setting (a time, a size) that is not a finite number above 0."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < float(value) < math.inf:
        raise ValueError(f"`{name}` is {value!r}, but must be a finite number above 0.")
