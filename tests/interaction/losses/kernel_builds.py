"""Compiles the kernels for GPUs that need not be present, and prints a line for each; `test_kernels.py` runs it.

Checks what Triton's interpreter does not: types, layouts, and that tiles fit in shared memory.
"""

from __future__ import annotations

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hf_interdistill.interaction.losses.triton import fused, kernels, row_kernels

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}
BYTES = ("key_mask", "shared")
INTEGERS = ("key_units", "row_units", "starts", "order", "segments", "sizes")
REALS = ("scaling", "softcap")
NUMBERS = ("content", "length", "units", "first_unit", "last_unit", "chunk", "stride", "heads")


def argument_type(name: str, kernel, states: str) -> str:
    if name in BYTES:
        return "*u8"
    if name in INTEGERS and not (name == "sizes" and kernel is not row_kernels.row_losses):
        return "*i32"
    if name in REALS or name in NUMBERS:
        return "fp32" if name in REALS else "i32"
    is_state = name in ("query", "key") or (name == "result" and kernel is kernels.query_gradient)
    return f"*{states if is_state else 'fp32'}"


def build(kernel, capability: int, warps: int, states: str, **constants) -> None:
    names = kernel.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    types = {name: "constexpr" if name in constants else argument_type(name, kernel, states) for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types[name].startswith("*")}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", capability, 32)
    built = triton.compile(source, target=target, options={"num_warps": warps})
    fits = built.metadata.shared <= SHARED_BYTES[capability]
    print(kernel.__name__, capability, states, constants.get("WIDTH", ""), "ok" if fits else "too much shared memory")


def build_attention(capability: int, dtype: torch.dtype, width: int, is_capped: bool, names: tuple) -> None:
    tiles = fused.choose_tiles(dtype, width)
    constants = {
        **{"KV_HEADS": 2, "GROUPS": 7, "WIDTH": width, "PADDED": 1 << (width - 1).bit_length()},
        **{"ROWS": tiles.rows, "COLUMNS": tiles.columns, "CAPPED": is_capped, "WIDEN": False},
        **{"PRECISION": fused._product_precision(dtype), "WIDEN_GRADIENT": dtype != torch.bfloat16},
    }
    for name in names:
        build(getattr(kernels, name), capability, tiles.warps, SHORT[dtype], **constants)


if __name__ == "__main__":
    every = ("log_sums", "head_mean", "query_gradient", "key_gradient")
    build_attention(90, torch.bfloat16, 64, False, every)
    build_attention(80, torch.bfloat16, 128, True, every[2:])
    build_attention(90, torch.bfloat16, 256, False, every[3:])
    build_attention(80, torch.float32, 128, False, every[2:])
    build(row_kernels.pool, 80, 4, "fp32", COLUMNS=128)
    for is_kl in (True, False):
        build(row_kernels.row_losses, 90, 4, "fp32", SCOPE=1, IS_KL=is_kl, NEEDS_GRADIENT=True, COLUMNS=2048)
