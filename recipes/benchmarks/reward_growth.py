"""How a reward model's step grows with the length of its texts and with the pairs of its batch.

`python recipes/benchmarks/reward_growth.py [--lengths 256 512 ...] [--pairs 1 4 16]`

Students, methods and way of measuring are those of `reward_step.py`: lengths with one pair a batch, time and peak
memory; pairs at the shortest length, time alone.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import matplotlib
import torch
from datasets import disable_progress_bars
from figures import keep, row, save_plot, table_of
from hardware import describe_hardware
from reward_models import Case
from reward_step import RIVAL, measure_case
from rich.console import Console

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAMES = {
    "parent": RIVAL,
    "ours": "ours, two passes",
    "shared": "ours, shared prompt (auto)",
    "naive": "output_attentions=True, eager",
}
STYLES = {
    "parent": ("s--", "#555555"),
    "ours": ("^-", "#d98e04"),
    "shared": ("o-", "#0b6e4f"),
    "naive": ("v-", "#c2452d"),
}


def measure(cases: list[Case], repeats: int, is_memory_wanted: bool, console: Console) -> list[dict[str, dict]]:
    """For each case, by method: seconds of a step and, if wanted, peak MiB; `None` where a GPU has too little."""
    measured = []
    for case in cases:
        console.print(f"measuring {case.setting} ...")
        times, memory = measure_case(case, repeats, tuple(NAMES), is_memory_wanted)
        figures = {"seconds": {method: times[method] for method in NAMES}}
        if is_memory_wanted:
            figures["mib"] = memory
        measured.append(figures)
    return measured


def rows_of(cases: list[Case], measured: list[dict[str, dict]]) -> list[dict]:
    """For `results.json`: each method against the parent."""
    rows = []
    for case, figures in zip(cases, measured, strict=True):
        for kind, values in figures.items():
            name, unit = ("reward_growth_time", "s") if kind == "seconds" else ("reward_growth_memory", "MiB")
            for method in NAMES:
                if method == "parent":
                    continue
                setting = f"{case.setting}, {NAMES[method]} against {RIVAL}"
                rows.append(row(name, setting, values[method], values["parent"], unit))
    return rows


def draw(
    lengths: list[int], by_length: list[dict], pairs: list[int], by_pairs: list[dict], title: str, path: Path
) -> None:
    """Three panels: time and memory against length, time a pair against the pairs of a batch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, panels = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    drawn = (
        (lengths, [each["seconds"] for each in by_length], [1] * len(lengths)),
        (lengths, [each["mib"] for each in by_length], [1] * len(lengths)),
        (pairs, [each["seconds"] for each in by_pairs], pairs),
    )
    for axes, (places, values, shares) in zip(panels, drawn, strict=True):
        for method, (style, color) in STYLES.items():
            reached = [math.nan if value[method] is None else value[method] for value in values]
            heights = [height / share for height, share in zip(reached, shares, strict=True)]
            axes.plot(places, heights, style, color=color, label=NAMES[method])
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{place:,}" for place in places])
        axes.set_ylim(0)
        axes.grid(alpha=0.25)
    panels[0].set(title="Step of one pair", xlabel="tokens of a text", ylabel="seconds")
    panels[1].set(title="Peak memory", xlabel="tokens of a text", ylabel="MiB")
    panels[2].set(title=f"Step a pair, {lengths[0]} tokens", xlabel="pairs of a batch", ylabel="seconds a pair")
    panels[0].legend(frameon=False)
    figure.suptitle(title, fontsize=9)
    save_plot(figure, path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    is_gpu = torch.cuda.is_available()
    lengths, pairs = ((512, 1024, 2048, 4096), (1, 4, 16, 32)) if is_gpu else ((256, 512, 1024, 2048), (1, 4, 16))
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths, help="tokens of prompt and response")
    parser.add_argument("--pairs", type=int, nargs="+", default=pairs, help="of a batch, at the shortest length")
    parser.add_argument("--repeats", type=int, default=2, help="steps timed, after one that warms up")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/results.json"))
    parser.add_argument("--plot", type=Path, default=Path("runs/bench/reward_growth.png"))
    arguments = parser.parse_args()
    disable_progress_bars()
    shape = {"hidden": 1024, "layers": 24, "teacher_hidden": 384, "teacher_layers": 6} if is_gpu else {}
    lengths, pairs = sorted(set(arguments.lengths)), sorted(set(arguments.pairs))
    long = [Case(length, 1, **shape) for length in lengths]
    wide = [replace(long[0], pairs=count) for count in pairs if count > 1]
    console = Console(markup=False, emoji=False)
    by_length = measure(long, arguments.repeats, True, console)
    by_pairs = measure(wide, arguments.repeats, False, console)
    rows = rows_of(long + wide, by_length + by_pairs)
    keep(rows, arguments.output)
    sizes = [1, *(case.pairs for case in wide)]
    title = f"student {long[0].hidden}x{long[0].layers}; {describe_hardware()}"
    draw(lengths, by_length, sizes, [by_length[0], *by_pairs], title, arguments.plot)
    console.print(table_of("Growth of a step", rows))
    console.print(f"Kept in {arguments.output} and {arguments.plot}.")


if __name__ == "__main__":
    main()
