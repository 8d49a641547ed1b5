"""Rows and tables of the benchmark of RAIN."""

from __future__ import annotations

import statistics

from figures import columns, row, table_of
from rain_costs import Costs
from rain_memory import Sample
from rich.table import Table

LOCK_STEPS = (1, 4, 16)
NOT_MEASURED = "not measured: give --rain-repo"
AGAINST_RELEASED = {
    "rain_seconds_per_iteration": ("seconds", "s"),
    "rain_processor_seconds_per_iteration": ("processor", "s"),
    "rain_forwards_per_iteration": ("passes", "passes"),
    "rain_tokens_per_iteration": ("tokens", "tokens"),
}


def compare(setting: str, runs: list[dict[str | int, Costs]]) -> list[dict]:
    """Rows against the released code: medians over the runs."""
    rows = []
    for count in LOCK_STEPS:
        window = f"first {runs[0][1].iterations} iterations, {len(runs)} runs, {count} in lock-step"
        for name, (field_name, unit) in AGAINST_RELEASED.items():
            ours = statistics.median(run[count].per_iteration(field_name) for run in runs)
            theirs = statistics.median(run["released"].per_iteration(field_name) for run in runs)
            rows.append(row(name, f"{setting}, {window}, against the released code", ours, theirs, unit))
    return rows


def shares(runs: list[dict[str | int, Costs]]) -> Table:
    """Where the processor time of an iteration goes."""
    names = ("side", "all", "language model", "encoder", "the rest", "passes", "tokens")
    table = columns("Processor seconds of an iteration", names, ("side",))
    for side in runs[0]:
        costs = [run[side] for run in runs if run[side].passes]
        if not costs:
            continue
        mean = {
            name: statistics.median(each.per_iteration(name) for each in costs)
            for name in ("processor", "in_model", "in_encoder", "passes", "tokens")
        }
        rest = mean["processor"] - mean["in_model"] - mean["in_encoder"]
        figures = [mean["processor"], mean["in_model"], mean["in_encoder"], rest]
        label = "released code" if side == "released" else f"ours, {side} in lock-step"
        table.add_row(label, *(f"{each:.3f}" for each in figures), f"{mean['passes']:.1f}", f"{mean['tokens']:.0f}")
    return table


def memory_rows(setting: str, samples: list[Sample]) -> list[dict]:
    """A row for the largest tree."""
    last = samples[-1]
    tree = f"a tree of {last.nodes} token sets with {last.tokens} tokens"
    against = "against a copy of the prefix a node (computed)"
    return [row("rain_cache_memory", f"{setting}, {tree}, {against}", last.held_mib, last.copies_mib, "MiB")]


def memory_table(samples: list[Sample]) -> Table:
    """Some of the samples."""
    counted = ("iterations", "token sets", "tokens", "held")
    sizes = ("held, MiB", "tensors, MiB", "peak added, MiB", "bytes a tree token")
    table = columns("Memory against the tree", (*counted, *sizes))
    for each in samples[:: max(1, len(samples) // 6)]:
        figures = (each.held_mib, each.pool_mib, each.peak_mib, each.held_mib * 2**20 / each.tokens)
        counts = (each.iterations, each.nodes, each.tokens, each.held)
        table.add_row(*(f"{each:,}" for each in counts), *(f"{each:,.1f}" for each in figures))
    return table


def results_table(setting: str, results: list[dict], is_released: bool, is_cpu: bool) -> Table:
    """All rows, and what was not measured."""
    table = table_of(f"RAIN: {setting}", results, f"{setting}, ")
    if not is_released:
        for name in AGAINST_RELEASED:
            table.add_row(name, "against the released code", "", NOT_MEASURED, "")
    if is_cpu:
        table.add_row("all of these on a GPU", "--device cuda --dtype bfloat16 --size 1b", "", "not in this run", "")
    return table
