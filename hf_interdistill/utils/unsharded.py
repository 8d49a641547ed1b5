"""Loads models that FSDP or DeepSpeed must not shard."""

from __future__ import annotations

import os
from contextlib import contextmanager

from transformers.integrations import deepspeed

_FSDP_LOAD_ON_FIRST = "FSDP_CPU_RAM_EFFICIENT_LOADING"  # set by `accelerate launch`, read by transformers


@contextmanager
def load_unsharded():
    """Context in which `from_pretrained` loads all weights on every process.

    Under DeepSpeed ZeRO-3 transformers would shard them. Under FSDP with `fsdp_cpu_ram_efficient_loading` only the
    first process would load them, and FSDP would broadcast them. A teacher, a scorer or a saved model that is checked
    is not part of the sharded model, so nothing would gather or broadcast its weights.
    """
    reference = getattr(deepspeed, "_hf_deepspeed_config_weak_ref", None)
    deepspeed.unset_hf_deepspeed_config()
    load_on_first = os.environ.pop(_FSDP_LOAD_ON_FIRST, None)
    try:
        yield
    finally:
        if load_on_first is not None:
            os.environ[_FSDP_LOAD_ON_FIRST] = load_on_first
        if reference is not None and reference() is not None:
            deepspeed.set_hf_deepspeed_config(reference())
