"""The settings of a search as separate options: `--iterations 30` beside `--rain '{"iterations": 30}'`."""

from __future__ import annotations

from dataclasses import field, fields, make_dataclass
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

from ..rain.api.job_config import RainJobConfig
from ..rain.config import RainConfig, field_meaning
from ..rain.presets import PRESETS
from ..utils.fields import as_mapping

_PRESET = f"Settings to start from (the first three are published): {', '.join(PRESETS)}."
_GENERATION = {"max_new_tokens": "Tokens of an answer at most (in `generation`)."}


class NotGiven(Enum):
    """The value of options that are not given, since `None` can be given."""

    NOT_GIVEN = None


def _option(name: str, hint: Any, text: str) -> tuple[str, Any, Any]:
    """An option that can be left out; a list for a tuple."""
    if get_origin(hint) is tuple:  # the parser takes the default of a list from its factory alone
        kind: Any = list[get_args(hint)[0]]  # type: ignore[misc]
        return name, kind, field(default_factory=lambda: NotGiven.NOT_GIVEN, metadata={"help": text})
    return name, hint, field(default=NotGiven.NOT_GIVEN, metadata={"help": text})


def _text(name: str, default: Any) -> str:
    """The meaning of a field of `RainConfig`, whether it may be `none`, and its default."""
    meaning = field_meaning(name).replace("%", "%%")
    if type(None) in get_args(_HINTS[name]):
        return f"{meaning}; or `none`, the default."
    return f"{meaning}; {default!r} if not given."


_HINTS = get_type_hints(RainConfig)
_OWN = {each.name for each in fields(RainJobConfig)}  # `seed` is the job's already

RainOptions = make_dataclass(
    "RainOptions",
    [
        _option("preset", str | None, _PRESET),
        *(
            _option(each.name, _HINTS[each.name], _text(each.name, each.default))
            for each in fields(RainConfig)
            if each.name not in _OWN
        ),
        *(_option(name, int | None, text) for name, text in _GENERATION.items()),
    ],
)
RainOptions.__module__ = __name__
RainOptions.__doc__ = """Fields of `RainConfig`, its `preset`, and `max_new_tokens`; else `NotGiven`."""


class UnmergedRainJob(RainJobConfig):
    """A job whose `rain` is checked when the options are merged into it, by `with_options`."""

    def _check_search(self) -> None:
        pass


def with_options(config: RainJobConfig, options: Any) -> RainJobConfig:
    """The job with the given options; they override `rain` and `generation`.

    Args:
        config: the job, merged or not. options: a `RainOptions`.

    Raises:
        ValueError: a value out of range, or no such preset.
    """
    given = {name: value for name, value in vars(options).items() if value is not NotGiven.NOT_GIVEN}
    generation = {name: given.pop(name) for name in _GENERATION if name in given}
    merged = {
        "rain": {**as_mapping("rain", config.rain), **given},
        "generation": {**config.generation_settings(), **generation},
    }
    return RainJobConfig(**{**vars(config), **merged})
