"""`interdistill env`: versions and devices, for a bug report."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    *("hf_interdistill", "torch", "transformers", "trl", "accelerate", "datasets", "huggingface-hub", "tokenizers"),
    *("safetensors", "peft", "bitsandbytes", "deepspeed", "triton", "vllm", "aiohttp", "starlette"),
)
ARGUMENTS = ()


def run() -> dict[str, str]:
    """Print one line each: system, Python, packages (`not installed` where they are not), devices.

    Returns:
        The same as a dict.
    """
    found = {"system": platform.platform(), "Python": platform.python_version()}
    found |= {name: _version(name) for name in PACKAGES}
    found |= _torch_build_and_devices()
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {value}")
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _torch_build_and_devices() -> dict[str, str]:
    """What only the imported torch tells: the package's metadata leave out the build (`+cpu`, `+cu130`)."""
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"torch": torch.__version__, "devices": ", ".join([*names, f"CPU, {torch.get_num_threads()} threads"])}
