"""Chooses the device of a command's models."""

from __future__ import annotations


def find_device(name: str | None) -> str:
    """A device for torch: the one that is named, else a GPU if there is one, else the CPU.

    Raises:
        ValueError: this machine, or this build of torch, has no such device.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].removesuffix(".")
        raise ValueError(
            f"`device` is {name!r}, but torch cannot use such a device here ({reason:.200}). Write `cpu`, `cuda` or "
            "`cuda:0` (the first of several GPUs), or leave it out: a GPU is used if there is one."
        ) from None
    return name
