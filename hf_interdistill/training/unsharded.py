"""Loads models that are no part of what FSDP or DeepSpeed shard."""

from __future__ import annotations

import os
from contextlib import contextmanager

from transformers.integrations import deepspeed

_FSDP_FIRST_ALONE = "FSDP_CPU_RAM_EFFICIENT_LOADING"  # set by `accelerate launch`, read by transformers


@contextmanager
def whole_on_each_process():
    """Inside this context `from_pretrained` loads every weight in every process.

    Under DeepSpeed ZeRO-3 it would shard them; under FSDP with `fsdp_cpu_ram_efficient_loading` it would leave to the
    first process what it expects FSDP to send to the others. The teacher is no part of the sharded model: nobody would
    gather or send its weights.
    """
    reference = getattr(deepspeed, "_hf_deepspeed_config_weak_ref", None)
    deepspeed.unset_hf_deepspeed_config()
    first_alone = os.environ.pop(_FSDP_FIRST_ALONE, None)
    try:
        yield
    finally:
        if first_alone is not None:
            os.environ[_FSDP_FIRST_ALONE] = first_alone
        if reference is not None and reference() is not None:
            deepspeed.set_hf_deepspeed_config(reference())
