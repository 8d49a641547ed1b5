"""The precision of a training run: one that this machine can run, chosen by the user or by default."""

from __future__ import annotations

import logging

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available

logger = logging.getLogger(__name__)


def choose_precision(args: TrainingArguments) -> None:
    """Set `bf16=False` where TRL would take bf16 by default and it cannot run; to be called before `__post_init__`.

    Raises:
        ValueError: the user chose a precision that cannot run here.
    """
    has_accelerator = torch.accelerator.is_available() or is_torch_xla_available()
    runs_bf16 = args.use_cpu or is_torch_bf16_gpu_available() or is_torch_xla_available()
    if args.bf16 is None and not args.fp16 and not runs_bf16:
        args.bf16 = False
        logger.warning(
            "No precision was chosen, and no accelerator that runs bf16 was found: training in float32 (`bf16=False`)."
        )
    for name in ("bf16", "bf16_full_eval"):
        if getattr(args, name) and not runs_bf16:
            raise ValueError(
                f"`{name}` is True, but no accelerator that runs bf16 was found. Leave it out or set `{name}=False` "
                "for float32, or set `use_cpu=True` to train in bf16 on the CPU, which is slow."
            )
    if args.fp16 and (args.use_cpu or not has_accelerator):
        raise ValueError(
            "`fp16` is True, but fp16 training needs an accelerator, and this run is on the CPU, where it would "
            "silently train in float32. Leave it out or set `fp16=False`; `bf16=True` with `use_cpu=True` runs."
        )
