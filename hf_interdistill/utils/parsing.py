"""Dataclasses from a YAML file and overrides on the command line; unknown keys are refused."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from .fields import nearest_name
from .none_values import NONE_HELP, accept_none
from .option_groups import describe_by_group
from .option_names import field_names, rename_keys, rename_words
from .sources import require_file


def parse(
    dataclass_types: Sequence[type], arguments: Sequence[str], prog: str | None = None, is_launched: bool = False
) -> tuple:
    """Dataclasses from a YAML file and overrides, with TRL's parser. Both take synonyms of options, and `none`.

    Args:
        dataclass_types: what to make. arguments: of the command line. prog: name of the command, for `--help`.
        is_launched: whether the help lists the options of `utils.launching`, which are taken out before.

    Raises:
        ValueError: a key that no dataclass has (the message names the nearest one), one that is missing or given by
            two names, or a value of another type.
    """
    from trl import TrlParser

    own = field_names(dataclass_types)
    arguments = rename_words([part for each in arguments for part in _config_apart(each)], own)
    parser = TrlParser(dataclass_types, prog=prog)  # type: ignore[arg-type]  # transformers' name for any dataclass
    parser.error = _refuse  # type: ignore[method-assign]  # argparse would print all keys before its message
    accept_none(parser, dataclass_types)
    take = parser.set_defaults_with_config
    parser.set_defaults_with_config = lambda **config: take(**rename_keys(config, own))  # type: ignore[method-assign]
    known = {action.dest for action in parser._actions} | {"env"}
    if {"-h", "--help"} & set(arguments):
        describe_by_group(parser, dataclass_types, is_launched)
        parser.epilog = NONE_HELP
        parser.parse_args(["--help"])
    if arguments[-1:] == ["--config"]:
        raise ValueError("`--config` names no file. Write `--config recipe.yaml`.")
    if "--config" in arguments:
        path = arguments[arguments.index("--config") + 1]
        _require_known(rename_keys(read_yaml(path), own), known, f"in {path}")
    flags = [argument[2:].split("=")[0].replace("-", "_") for argument in arguments if argument.startswith("--")]
    options = {option.lstrip("-").replace("-", "_") for option in parser._option_string_actions}
    _require_known([flag for flag in flags if flag != "config"], options, "given")
    return parser.parse_args_and_config(arguments)


def _config_apart(argument: str) -> list[str]:
    """`--config=FILE` as TRL's parser reads it: `--config FILE`."""
    return argument.split("=", 1) if argument.startswith("--config=") else [argument]


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"{message[:1].upper()}{message[1:].rstrip('.')}. (`--help` lists all keys.)")


def given_values(dataclass_types: Sequence[type], arguments: Sequence[str]) -> dict[str, Any]:
    """What words of a command line set, by key; each value is of its field's kind.

    Args:
        dataclass_types: as in `parse`, which checks the words. arguments: `--key value ...`, without `--config`.
    """
    from trl import TrlParser

    arguments = rename_words(arguments, field_names(dataclass_types))
    parser = TrlParser(dataclass_types)  # type: ignore[arg-type]
    parser.error = _refuse  # type: ignore[method-assign]
    accept_none(parser, dataclass_types)
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    found, _ = parser.parse_known_args(list(arguments))
    return vars(found)


def read_recipe(path: str, dataclass_types: Sequence[type]) -> dict[str, Any]:
    """The mapping in a YAML file, under the names of the dataclasses' options.

    Raises:
        SourceNotFoundError: there is no such file. ValueError: no YAML, no mapping, or one option by two names.
    """
    return rename_keys(read_yaml(path), field_names(dataclass_types))


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        SourceNotFoundError: there is no such file. ValueError: no YAML, or no mapping.
    """
    import yaml

    file = require_file("config", path)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a YAML mapping of keys to values, but holds {type(content).__name__}.")
    return content


def _require_known(keys, known: set[str], where: str) -> None:
    for key in keys:
        if key not in known:
            near = nearest_name(key, known)
            hint = "" if near is None else f" Did you mean `{near}`?"
            raise ValueError(f"Unknown key `{key}` {where}.{hint} (`--help` lists all keys.)")
