"""Commands in two processes, as `accelerate launch` starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from support.models import ROOT

# `accelerate launch --cpu --num_processes 2` would start one process (two need MPI): the recipe's launcher starts two.
ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--config_file", str(ROOT / "recipes" / "accelerate_configs" / "ddp.yaml")),
    *("--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"),
)


def launched(commands: list[list[str]], *launcher: str, **environment) -> subprocess.CompletedProcess:
    """Run commands one after the other in two processes, as `accelerate launch` starts them."""
    return subprocess.run(
        [sys.executable, *ACCELERATE, *launcher, str(ROOT / "tests" / "trust" / "commands.py"), json.dumps(commands)],
        env=surroundings(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )


def surroundings(**more) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}
