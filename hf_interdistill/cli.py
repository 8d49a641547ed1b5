"""`interdistill COMMAND --config recipe.yaml [--key value ...]`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from .commands.quiet import known_noise_silenced
from .utils.errors import RunError, recovery_hint
from .utils.fields import nearest_name
from .utils.sources import require_file

COMMANDS = {
    "teacher": ("commands.teacher", "train a bidirectional teacher on preferences"),
    "reward": ("commands.reward", "train a reward model, plain or interaction-distilled"),
    "push": ("commands.push", "upload a reward model to the Hub"),
    "rain": ("commands.rain", "generate with RAIN for a file of prompts, resumable"),
    "rain push": ("commands.rain_push", "put RAIN on the Hub as a decoding strategy that needs no package"),
    "eval": ("commands.eval", "compare reward models on published benchmarks"),
    "diagnose": ("commands.diagnose", "report on attention hacking and other faults of reward models"),
    "best-of-n": ("commands.best_of_n", "sample candidates, score them, keep the best; curve of over-optimization"),
    "score": ("commands.score", "score completions or preferences with a reward model"),
    "serve": ("commands.serve", "serve the rewards of a model over HTTP"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the `interdistill` command; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="interdistill",
        description="Interaction-distilled reward models.",
        epilog="Each command takes --config recipe.yaml, then --key value overrides; "
        "`interdistill COMMAND --help` lists the keys.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    command, rest = split_command(arguments)
    parser.parse_args([command] if arguments else [])
    try:
        with known_noise_silenced():
            module = importlib.import_module(f".{COMMANDS[command][0]}", __package__)
            settings = parse(module.ARGUMENTS, rest, prog=f"interdistill {command}")
            module.run(*settings)
    except (ValueError, TypeError, OSError, FloatingPointError, RunError, ImportError) as error:
        print(f"interdistill {command}: error: {error}{recovery_hint(error)}", file=sys.stderr)
        return 2
    return 0


def split_command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The command of one or two words that arguments begin with (unknown ones as they are), and the others."""
    words = 2 if " ".join(arguments[:2]) in COMMANDS else 1
    return " ".join(arguments[:words]), list(arguments[words:])


def parse(dataclass_types: Sequence[type], arguments: Sequence[str], prog: str | None = None) -> tuple:
    """Dataclasses from a YAML file and overrides, with TRL's parser.

    Raises:
        ValueError: a key that no dataclass has (the message names the nearest one), one that is missing, or a value
            of another type.
    """
    from trl import TrlParser

    arguments = [part for each in arguments for part in _config_apart(each)]
    parser = TrlParser(dataclass_types, prog=prog)  # type: ignore[arg-type]  # transformers' name for any dataclass
    parser.error = _refuse  # type: ignore[method-assign]  # argparse would print all keys before its message
    known = {action.dest for action in parser._actions} | {"env"}
    if arguments[-1:] == ["--config"]:
        raise ValueError("`--config` names no file. Write `--config recipe.yaml`.")
    if "--config" in arguments:
        path = arguments[arguments.index("--config") + 1]
        _require_known(_read_yaml(path), known, f"in {path}")
    flags = [argument[2:].split("=")[0].replace("-", "_") for argument in arguments if argument.startswith("--")]
    options = {option.lstrip("-").replace("-", "_") for option in parser._option_string_actions}
    _require_known([flag for flag in flags if flag != "config"], options, "given")
    return parser.parse_args_and_config(arguments)


def _config_apart(argument: str) -> list[str]:
    """`--config=FILE` as TRL's parser reads it: `--config FILE`."""
    return argument.split("=", 1) if argument.startswith("--config=") else [argument]


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"{message[:1].upper()}{message[1:].rstrip('.')}. (`--help` lists all keys.)")


def _read_yaml(path: str) -> dict:
    import yaml

    file = require_file("config", path)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a YAML mapping of keys to values, but holds {type(content).__name__}.")
    return content


def _require_known(keys, known: set[str], where: str) -> None:
    for key in keys:
        if key not in known:
            near = nearest_name(key, known)
            hint = "" if near is None else f" Did you mean `{near}`?"
            raise ValueError(f"Unknown key `{key}` {where}.{hint} (`--help` lists all keys.)")


if __name__ == "__main__":
    sys.exit(main())
