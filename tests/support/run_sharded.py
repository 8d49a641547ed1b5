"""Runs commands in processes that share the weights of a model without a GPU.

`python -m support.run_sharded '[["reward", ...], ...]' '[["reward", ...], ...]'`: commands that must succeed, then
commands that must be refused.
"""

from __future__ import annotations

import json
import os
import sys

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from hf_interdistill.cli import main


def let_cpus_shard() -> None:
    """Count CPU processes as GPUs, which stay on the CPU: accelerate passes FSDP over in silence without a GPU."""
    original = PartialState.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = init


if __name__ == "__main__":
    torch.set_num_threads(1)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        let_cpus_shard()
    for expected, commands in zip((0, 2), sys.argv[1:], strict=True):
        for command in json.loads(commands):
            status = main(command)
            if status != expected:
                sys.exit(f"{command} ended with {status} instead of {expected}")
            AcceleratorState._reset_state()  # DeepSpeed allows one training a process
