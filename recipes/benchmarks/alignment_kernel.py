"""Time and memory of the alignment alone, against the tokens of a pair.

`python recipes/benchmarks/alignment_kernel.py [--tokens 512 1024 ...] [--output runs/bench/results.json]`

One pair, a student's layer of the shape of a 0.5B decoder's (14 heads of width 64, 2 of keys), a teacher's of MiniLM's
(12 heads of width 32), three units for four tokens, `joint` KL, loss and gradient. On a GPU: the Triton kernels
against the path in torch, and against the step of a 0.5B decoder, from a config, on two rows of 2,048 tokens; by the
clock, and by the GPU's own time (of its kernels, without the waits for a host that is slower to launch them).
Elsewhere the path in torch alone; seconds are then the processor's, and each setting has a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import matplotlib
import torch
from figures import columns, keep, row, save_plot
from hardware import describe_hardware, peak_resident_mib
from rich.console import Console

from hf_interdistill.interaction.attention.map_sources import RecordedMapSource
from hf_interdistill.interaction.attention.maps import AttentionMap, UnitTokens
from hf_interdistill.interaction.attention.recorder import RecordedAttention
from hf_interdistill.interaction.losses.alignment import alignment_loss

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HEADS, KV_HEADS, WIDTH = 14, 2, 64
TEACHER_HEADS, TEACHER_WIDTH = 12, 32
STEP_LENGTH = 2048
STEP_CONTENT = 2867  # of a pair of that length: three fifths prompt, once, and two responses
PARAMETERS = 358e6  # of the decoder beside its embeddings
LAYERS, HIDDEN = 24, 896
SEGMENTS = (0.43, 0.285, 0.285)  # prompt, chosen, rejected: the same pair
IS_GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if IS_GPU else ("cpu", torch.float32)


def make_pair(tokens: int):
    """Queries and keys with gradient, and everything else that `alignment_loss` takes."""
    generator = torch.Generator().manual_seed(0)

    def states(heads: int, width: int) -> torch.Tensor:
        return torch.randn(1, heads, tokens, width, generator=generator).to(DEVICE, DTYPE)

    units = torch.tensor([[place // 4 * 3 + min(place % 4, 2) for place in range(tokens)]], device=DEVICE)
    count = int(units.max()) + 1
    bounds = [int(share * count) for share in (SEGMENTS[0], SEGMENTS[0] + SEGMENTS[1])]
    segments = torch.bucketize(torch.arange(count, device=DEVICE), torch.tensor(bounds, device=DEVICE), right=True)
    leaves = [states(HEADS, WIDTH).requires_grad_(), states(KV_HEADS, WIDTH).requires_grad_()]
    teacher = RecordedAttention(states(TEACHER_HEADS, TEACHER_WIDTH), states(TEACHER_HEADS, TEACHER_WIDTH), 0.18)
    return leaves, units, count, segments[None], teacher


def align(pair, kernel: str) -> None:
    leaves, units, count, segments, teacher = pair
    tokens = UnitTokens.from_units(units, units >= 0, count)
    student = AttentionMap(*leaves, tokens, WIDTH**-0.5, None)
    alignment_loss(student, RecordedMapSource(teacher, tokens), segments, kernel=kernel).loss.backward()
    for leaf in leaves:
        leaf.grad = None


def make_step():
    """One step of a 0.5B decoder on two rows, as TRL sets it up: bfloat16, gradient checkpointing, AdamW."""
    from transformers import Qwen2Config, Qwen2ForSequenceClassification

    config = Qwen2Config(
        **{"vocab_size": 151_936, "hidden_size": HIDDEN, "intermediate_size": 4864, "num_hidden_layers": LAYERS},
        **{"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "num_labels": 1, "pad_token_id": 0},
    )
    with torch.device(DEVICE):
        model = Qwen2ForSequenceClassification(config).to(DTYPE).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(1, config.vocab_size, (2, STEP_LENGTH), device=DEVICE)

    def step() -> None:
        rewards = model(input_ids=ids, use_cache=False).logits.float()
        (-torch.nn.functional.logsigmoid(rewards[0] - rewards[1]).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def median_seconds(function, repeats: int) -> float:
    """On a GPU by the clock, after a first call; on a CPU the processor's time, so that others cost nothing."""
    times = []
    for _ in range(repeats + IS_GPU):
        start = time.perf_counter() if IS_GPU else time.process_time()
        function()
        if IS_GPU:
            torch.cuda.synchronize()
        times.append((time.perf_counter() if IS_GPU else time.process_time()) - start)
    return statistics.median(times[IS_GPU:])


def busy_seconds(function, repeats: int) -> float:
    """Time of the GPU's kernels in a call; 0 where the profiler sees none."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(repeats):
            function()
        torch.cuda.synchronize()
    return sum(each.self_device_time_total for each in profile.key_averages()) / 1e6 / repeats


def _memory_mark() -> float:
    """Memory held now, MiB; the peak is counted from here."""
    if IS_GPU:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # on Linux: the peak starts again
    return peak_resident_mib()


def measure_here(kernel: str, tokens: int, repeats: int) -> dict[str, float]:
    if kernel == "step":
        before, function = _memory_mark(), make_step()
    else:
        pair = make_pair(tokens)
        align(make_pair(16), "torch")  # libraries take memory once
        if kernel == "triton":
            align(pair, kernel)  # compiled, and checked against the path in torch
        before, function = _memory_mark(), partial(align, pair, kernel)
    seconds = median_seconds(function, repeats)
    peak = torch.cuda.max_memory_allocated() / 2**20 if IS_GPU else peak_resident_mib()
    busy = {"busy_seconds": busy_seconds(function, min(repeats, 5))} if IS_GPU else {}
    return {"seconds": seconds, "peak_mib": peak - before, **busy}


def measure(kernel: str, tokens: int, repeats: int) -> dict[str, float]:
    """Seconds and peak memory: on a GPU here, where the peak can start again, else in a process of its own."""
    if IS_GPU:
        return measure_here(kernel, tokens, repeats)
    command = [sys.executable, __file__, "--one", kernel, str(tokens), "--repeats", str(repeats)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"measuring {kernel} at {tokens} tokens failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.strip().splitlines()[-1])


def floor(tokens: int) -> float:
    """FLOPs of the kernels for a pair, over those of the decoder's step on its two rows."""
    alignment = 14 * HEADS * WIDTH * tokens**2 + 4 * TEACHER_HEADS * TEACHER_WIDTH * tokens**2
    rows = 2 * STEP_LENGTH
    return alignment / (
        8 * PARAMETERS * rows + 8 * LAYERS * HIDDEN * rows * STEP_LENGTH
    )  # causal: half of each product


def draw(measured: dict[str, list[dict]], tokens: list[int], path: Path) -> None:
    """Plot time and memory against tokens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for (kernel, figures), color in zip(measured.items(), ("#0b6e4f", "#c2452d"), strict=False):
        left.plot(tokens, [figure["seconds"] for figure in figures], "o-", color=color, label=kernel)
        right.plot(tokens, [figure["peak_mib"] for figure in figures], "o-", color=color, label=kernel)
    first = next(iter(measured.values()))[0]["seconds"]
    guide = [first * (count / tokens[0]) ** 2 for count in tokens]
    left.plot(tokens, guide, ":", color="#555555", label="square of the tokens")
    left.set(title="Loss and gradient of a pair", xlabel="tokens", ylabel="seconds", xscale="log", yscale="log")
    naive = [HEADS * count**2 * 4 / 2**20 for count in tokens]
    right.plot(tokens, naive, "^--", color="#555555", label="one heads x tokens x tokens tensor, computed")
    highest = max(naive + [figure["peak_mib"] for figures in measured.values() for figure in figures])
    limits = (0, 1.4 * highest)  # room for the legend
    right.set(title="Memory beyond queries and keys", xlabel="tokens", ylabel="MiB (peak)", ylim=limits)
    left.set_xticks(tokens, [f"{count:,}" for count in tokens], rotation=45)
    left.minorticks_off()
    for axes in (left, right):
        axes.legend(frameon=False, loc="upper left")
        axes.grid(alpha=0.25)
    figure.suptitle(f"{describe_hardware()}; {HEADS} heads of width {WIDTH}, {str(DTYPE)[6:]}", fontsize=9)
    save_plot(figure, path)
    plt.close(figure)


def rows_of(measured: dict[str, list[dict]], tokens: list[int], step: dict | None) -> list[dict]:
    """For `results.json`: kernels over torch, kernels over a step, and memory as it grows."""
    rows = []

    for place, count in enumerate(tokens):
        by_torch = measured["torch"][place]
        if place:
            earlier, growth = measured["torch"][place - 1], f"torch, {count} tokens / {tokens[place - 1]} tokens"
            rows.append(row("alignment_memory_growth", growth, by_torch["peak_mib"], earlier["peak_mib"], "MiB"))
        if "triton" in measured:
            own, setting = measured["triton"][place], f"{count} tokens, Triton / torch"
            rows.append(row("alignment_kernel_time", setting, own["seconds"], by_torch["seconds"], "s"))
            rows.append(row("alignment_kernel_memory", setting, own["peak_mib"], by_torch["peak_mib"], "MiB"))
        if step is not None:
            setting = f"{count} tokens, Triton / step of a 0.5B decoder on 2 x {STEP_LENGTH} tokens"
            own = measured["triton"][place]
            rows.append(row("alignment_kernel_share", setting, own["seconds"], step["seconds"], "s"))
            if own["busy_seconds"] and step["busy_seconds"]:
                setting += ", the GPU's own time"
                rows.append(row("alignment_kernel_share", setting, own["busy_seconds"], step["busy_seconds"], "s"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", help="of the pairs (default: 256 to 4,096; 8,192 on a GPU)")
    parser.add_argument("--repeats", type=int, default=20 if IS_GPU else 1)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/results.json"))
    parser.add_argument("--plot", type=Path, default=Path("runs/bench/alignment_growth.png"))
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "TOKENS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure_here(arguments.one[0], int(arguments.one[1]), arguments.repeats)))
        return
    default = [256, 512, 1024, 2048, STEP_CONTENT, 4096, *([8192] if IS_GPU else [])]
    tokens = sorted(arguments.tokens or default)
    console = Console(markup=False, emoji=False)
    measured = {
        kernel: [measure(kernel, count, arguments.repeats) for count in tokens]
        for kernel in (("triton", "torch") if IS_GPU else ("torch",))
    }
    step = measure("step", 0, arguments.repeats) if IS_GPU else None
    names = ("tokens", "path", "seconds", "the GPU's own", "peak MiB", "FLOPs of the kernels / step")
    table = columns("Alignment of one pair", names)
    for kernel, figures in measured.items():
        for count, values in zip(tokens, figures, strict=True):
            seconds, peak = f"{values['seconds']:.4g}", f"{values['peak_mib']:.0f}"
            busy = f"{values['busy_seconds']:.4g}" if IS_GPU else ""
            table.add_row(f"{count:,}", kernel, seconds, busy, peak, f"{floor(count):.4f}")
    if step is not None:
        seconds, busy, peak = (step[name] for name in ("seconds", "busy_seconds", "peak_mib"))
        table.add_row(f"2 x {STEP_LENGTH:,}", "step", f"{seconds:.4g}", f"{busy:.4g}", f"{peak:.0f}", "")
    console.print(table)
    if not IS_GPU:
        console.print("Triton kernels, and their share of a 0.5B decoder's step: not measured, there is no GPU.")
    rows = rows_of(measured, tokens, step)
    for each in rows:
        console.print(f"{each['name']}, {each['setting']}: {each['ratio']:.3f}")
    keep(rows, arguments.output)
    draw(measured, tokens, arguments.plot)
    console.print(f"Kept in {arguments.output} and {arguments.plot}.")


if __name__ == "__main__":
    main()
