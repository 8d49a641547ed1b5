"""`interdistill COMMAND --config recipe.yaml [--key value ...]`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from .commands.quiet import known_noise_silenced
from .utils.errors import RunError, recovery_hint
from .utils.launching import run_launched
from .utils.pages.command import running
from .utils.parsing import parse

COMMANDS = {
    "teacher": ("commands.teacher", "train a bidirectional teacher on preferences"),
    "reward": ("commands.reward", "train a reward model, plain or interaction-distilled"),
    "push": ("commands.push", "upload a reward model to the Hub"),
    "rain": ("commands.rain", "generate with RAIN for a file of prompts, resumable"),
    "rain push": ("commands.rain_push", "put RAIN on the Hub as a decoding strategy that needs no package"),
    "eval": ("commands.eval", "compare reward models on published benchmarks"),
    "compare": ("commands.compare", "train with and without interaction distillation, and compare on held-out pairs"),
    "diagnose": ("commands.diagnose", "report on attention hacking and other faults of reward models"),
    "best-of-n": ("commands.best_of_n", "sample candidates, score them, keep the best; curve of over-optimization"),
    "score": ("commands.score", "score completions or preferences with a reward model"),
    "env": ("commands.env", "print versions and devices, for a report of a fault"),
    "serve": ("commands.serve", "serve the rewards of a model over HTTP"),
    "convert": ("commands.convert", "write a reward model of another trainer as a plain one"),
}

_BAR_DELAY = "2"  # seconds; progress bars of what takes less are not shown

LAUNCHED = ("teacher", "reward", "rain", "best-of-n")  # they share their work among processes


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the `interdistill` command; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="interdistill",
        description="Interaction-distilled reward models.",
        epilog="Each command takes --config recipe.yaml, then --key value overrides; "
        "`interdistill COMMAND --help` lists the keys.",
    )
    parser.add_argument("--version", action="version", version=f"hf_interdistill {version('hf_interdistill')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    command, rest = split_command(arguments)
    parser.parse_args([command] if arguments else [])
    os.environ.setdefault("TQDM_DELAY", _BAR_DELAY)  # tqdm reads it when it is imported
    try:
        status = run_launched(command, rest) if command in LAUNCHED else None
        if status is not None:
            return status
        with known_noise_silenced(), running(["interdistill", *arguments]):
            module = importlib.import_module(f".{COMMANDS[command][0]}", __package__)
            settings = parse(module.ARGUMENTS, rest, f"interdistill {command}", command in LAUNCHED)
            words = {"words": rest} if getattr(module, "TAKES_WORDS", False) else {}
            module.run(*settings, **words)
    except (ValueError, TypeError, OSError, FloatingPointError, RunError, ImportError) as error:
        print(f"interdistill {command}: error: {error}{recovery_hint(error)}", file=sys.stderr)
        return 2
    return 0


def split_command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The command of one or two words that arguments begin with (unknown ones as they are), and the others."""
    words = 2 if " ".join(arguments[:2]) in COMMANDS else 1
    return " ".join(arguments[:words]), list(arguments[words:])


if __name__ == "__main__":
    sys.exit(main())
