"""The processes of a launch."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def process_state() -> PartialState:
    """This process among those of its launch.

    Without an accelerator accelerate joins processes only if it is told that they run on the CPU. Otherwise each would
    act as the only one, and all would write the whole job to the same files.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
