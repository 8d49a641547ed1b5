"""Starts several processes of a command through accelerate."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NoReturn

from .child_process import run_child

_OPTIONS = ("num_processes", "accelerate_config")


def launcher(num_processes: int | None, accelerate_config: str | None) -> tuple[str, ...]:
    """The words between Python and a command's module that start several processes; empty where one is enough.

    Args:
        num_processes: processes; `None`: as many as the configuration says.
        accelerate_config: a configuration of accelerate: a file, or the name of one of TRL's (`multi_gpu`, `fsdp2`,
            `zero3`, ...).

    Raises:
        ValueError: the configuration is neither.
    """
    if accelerate_config is None and num_processes in (None, 1):
        return ()
    words = ["-m", "accelerate.commands.launch"]
    path = None if accelerate_config is None else find_accelerate_config(accelerate_config)
    words += [] if path is None else ["--config_file", path]
    words += [] if num_processes is None else ["--num_processes", str(num_processes)]
    words += ["--main_process_port", "0"]
    if num_processes not in (None, 1) and not _starts_processes(path):
        words.append("--multi_gpu")  # torch's launcher, with and without GPUs
    return tuple(words)


def _starts_processes(path: str | None) -> bool:
    """Whether accelerate starts several processes by a configuration; `None`: the user's own, if there is one.

    With none, or with one of the types `NO` and `MULTI_CPU`, it starts a single process whatever `--num_processes`
    says: on a CPU it leaves the others to `mpirun`.
    """
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file  # two seconds
    from accelerate.utils import DistributedType

    if path is None and not Path(default_config_file).is_file():
        return False
    config = load_config_from_file(path)
    has_mpirun = bool(getattr(config, "mpirun_config", None))
    return has_mpirun or config.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU)


def find_accelerate_config(name: str) -> str:
    """The file of a configuration, given itself or as the name of one of TRL's.

    Raises:
        ValueError: it is neither.
    """
    if Path(name).is_file():
        return name
    folder = resources.files("trl.accelerate_configs")
    names = sorted(each.name.removesuffix(".yaml") for each in folder.iterdir() if each.name.endswith(".yaml"))
    if name not in names:
        raise ValueError(
            f"`accelerate_config` is {name!r}, but must be a file or one of TRL's configurations: {', '.join(names)}."
        )
    return str(folder / f"{name}.yaml")


def run_launched(command: str, arguments: Sequence[str]) -> int | None:
    """Run a command in the processes that its arguments ask for with `--num_processes` and `--accelerate_config`.

    Args:
        command: of `interdistill`. arguments: what follows it.

    Returns:
        The exit status as a shell gives it, 128 and the signal's number for a command that a signal ended; or `None`
        where the arguments ask for no other processes: the command runs here.

    Raises:
        ValueError: a bad value; or this process is itself one of several.
        SystemExit: a signal ended it, see `run_child`.
    """
    found, rest = split_launch_options(arguments)
    if not found:
        return None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"`{next(iter(found))}` is given, but a launcher has started this command in {os.environ['WORLD_SIZE']} "
            "processes already. Leave it out, or start the command without a launcher."
        )
    count = found.get("num_processes")
    if count is not None and not (count.isdecimal() and int(count) > 0):
        raise ValueError(f"`num_processes` is {count!r}, but must be a whole number of at least 1.")
    words = launcher(None if count is None else int(count), found.get("accelerate_config"))
    try:
        status = run_child([sys.executable, *words, "-m", "hf_interdistill.cli", *command.split(), *rest])
    except KeyboardInterrupt:
        status = -signal.SIGINT
    return status if status >= 0 else 128 - status


def split_launch_options(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The values of the options of launching, and the other arguments.

    Raises:
        ValueError: an option without a value.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in _OPTIONS:
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}")
    parser.error = _refuse  # type: ignore[method-assign]
    found, rest = parser.parse_known_args(list(arguments))
    return vars(found), rest


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"{message[:1].upper()}{message[1:]}. Write a value after it, or leave it out.")
