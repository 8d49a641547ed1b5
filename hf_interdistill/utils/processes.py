"""The processes of a launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

LONGEST_WAIT = timedelta(days=365)


def process_state(uses_device: bool = True) -> PartialState:
    """This process among those of its launch.

    Without an accelerator accelerate joins processes only if it is told that they run on the CPU. Otherwise each would
    act as the only one, and all would write the whole job to the same files.

    Args:
        uses_device: whether they compute on accelerators. Otherwise they are joined on the CPU, by gloo.
    """
    has_device = uses_device and torch.accelerator.is_available()
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not has_device)


@contextmanager
def long_barrier(state: PartialState) -> Iterator[Callable[[], None]]:
    """A function that waits for all processes, however long they work. All of them enter this block together.

    Barriers of the group that a launch has by default give up after 30 minutes (gloo) or 10 (NCCL).
    """
    if state.num_processes == 1 or not torch.distributed.is_initialized():
        yield state.wait_for_everyone
        return
    group = torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
    try:
        yield lambda: torch.distributed.barrier(group=group)
    finally:
        torch.distributed.destroy_process_group(group)
