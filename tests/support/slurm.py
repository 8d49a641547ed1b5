"""SLURM's commands, which run the tasks of a job on this machine; and two hosts on it, with a network of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.datasets import ROOT
from support.processes import environment_with

RECIPES = ROOT / "recipes" / "slurm"
NODES = 2
_SRUN = """#!/bin/bash
# One task a node; ON_NODE is what a task is run with, `%` the number of its node.
ends_others=1
while [[ ${1:-} == --* ]]; do
    [[ $1 == --kill-on-bad-exit=0 ]] && ends_others=0
    shift
done
tasks=()
trap 'kill "${tasks[@]}" 2> /dev/null; wait; exit 143' TERM
for ((node = 0; node < SLURM_NNODES; node++)); do
    SLURM_NODEID=$node SLURM_PROCID=$node ${ON_NODE//%/$node} "$@" &
    tasks+=($!)
done
status=0
for _ in "${tasks[@]}"; do
    wait -n
    code=$?
    ((code)) && status=$code
    ((code && ends_others)) && kill "${tasks[@]}" 2> /dev/null
done
exit $status
"""
_SCONTROL = """#!/bin/bash
[[ "$1 $2 $3" == "show hostnames nodes" ]] && tr ' ' '\\n' <<< "$ADDRESSES"
"""


class Slurm:
    """A job of two nodes.

    Args:
        folder: for the commands. addresses: of the nodes.
        on_node: words before a task, `%` for the number of its node.
    """

    def __init__(self, folder: Path, addresses: tuple[str, ...] = ("127.0.0.1", "127.0.0.2"), on_node: str = ""):
        self.bin, self.addresses, self.on_node = folder / "bin", addresses, on_node
        self.bin.mkdir(parents=True)
        self.add("srun", _SRUN)
        self.add("scontrol", _SCONTROL)

    def add(self, name: str, script: str) -> None:
        """A further command."""
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def add_module(self, name: str, module: str) -> None:
        """A command that is a module of Python."""
        self.add(name, f'#!/bin/bash\nexec {sys.executable} -m {module} "$@"\n')

    def run(self, script: str, *arguments: str, seconds: int = 500, **environment: str) -> subprocess.CompletedProcess:
        """Run a script of the recipes as a job's batch step, on the first node."""
        words = [*self.on_node.replace("%", "0").split(), "bash", str(RECIPES / script), *arguments]
        job = {"SLURM_NNODES": str(NODES), "SLURM_JOB_NODELIST": "nodes", "SLURM_JOB_ID": str(os.getpid())}
        job |= {"ADDRESSES": " ".join(self.addresses), "ON_NODE": self.on_node}
        return subprocess.run(
            words,
            env=environment_with(**job, **{"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", **environment}),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )


def why_no_hosts() -> str | None:
    """Why network namespaces cannot be made here, or `None`."""
    if shutil.which("ip") is None:
        return "needs ip (iproute2)"
    name = f"try{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"needs network namespaces ({made.stderr.strip()})"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


@contextmanager
def two_hosts(folder: Path) -> Iterator[Slurm]:
    """A job whose nodes are network namespaces: each has a loopback and ports of its own, and a cable to the other."""
    names = [f"h{os.getpid()}-{number}" for number in range(NODES)]
    addresses = tuple(f"10.77.0.{number + 1}" for number in range(NODES))
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for name, address in zip(names, addresses, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
        yield Slurm(folder, addresses, f"ip netns exec h{os.getpid()}-%")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
