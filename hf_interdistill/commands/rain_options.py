"""The settings of a search as separate options: `--iterations 30` beside `--rain '{"iterations": 30}'`."""

from __future__ import annotations

import types
from dataclasses import asdict, field, fields, make_dataclass
from typing import Any, Optional, get_args, get_origin, get_type_hints

from ..rain.api.job_config import RainJobConfig
from ..rain.config import RainConfig, field_meaning
from ..rain.presets import PRESETS
from ..utils.fields import as_mapping

_GENERATION = {"max_new_tokens": "Tokens of an answer at most (in `generation`)."}


def _given_type(hint: Any) -> Any:
    """What the parser reads for a field of `RainConfig`: a list for a tuple, a plain type for an optional one."""
    if isinstance(hint, types.UnionType):
        (hint,) = (each for each in get_args(hint) if each is not type(None))
    return list[get_args(hint)[0]] if get_origin(hint) is tuple else hint  # type: ignore[misc]


def _option(name: str, kind: Any, text: str) -> tuple[str, Any, Any]:
    return name, Optional[kind], field(default=None, metadata={"help": text})  # noqa: UP045  # the parser wants it


_HINTS = get_type_hints(RainConfig)
_OWN = {each.name for each in fields(RainJobConfig)}  # `seed` is the job's already

RainOptions = make_dataclass(
    "RainOptions",
    [
        _option("preset", str, f"Settings to start from (the first three are published): {', '.join(PRESETS)}."),
        *(
            _option(
                each.name,
                _given_type(_HINTS[each.name]),
                f"{field_meaning(each.name).replace('%', '%%')}; {each.default!r} if not given.",
            )
            for each in fields(RainConfig)
            if each.name not in _OWN
        ),
        *(_option(name, int, text) for name, text in _GENERATION.items()),
    ],
)
RainOptions.__module__ = __name__
RainOptions.__doc__ = """Fields of `RainConfig`, its `preset`, and `max_new_tokens`; `None` where it is not given."""


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
    given = {name: value for name, value in asdict(options).items() if value is not None}
    generation = {name: given.pop(name) for name in _GENERATION if name in given}
    merged = {
        "rain": {**as_mapping("rain", config.rain), **given},
        "generation": {**config.generation_settings(), **generation},
    }
    return RainJobConfig(**{**vars(config), **merged})
