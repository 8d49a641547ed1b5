"""The tables of a comparison on the terminal."""

from __future__ import annotations

from rich.table import Table

from ...utils.wording import count, duration, signed
from ..result import Comparison, ModelResult, TeacherResult
from ..statistics import Estimate


def accuracy_table(comparison: Comparison) -> Table:
    """Teachers and models on the held-out pairs."""
    of_seeds = f", {count(len(comparison.seeds), 'seed')}"
    table = Table(
        title=f"Accuracy on {count(comparison.pairs, 'held-out pair')}{of_seeds} (chance 0.5)", title_justify="left"
    )
    has_explained = any(model.explained is not None for model in comparison.models)
    columns = ["model", "accuracy", "95 % interval", "log loss, nats", "mean margin", "ties"]
    for column in columns + ["map explained"] * has_explained:
        table.add_column(column, justify="left" if column == "model" else "right", overflow="fold")
    for teacher in comparison.teachers:
        name = "teacher" if len(comparison.teachers) == 1 else f"teacher of {', '.join(teacher.models)}"
        table.add_row(name, *_cells(teacher))
    for model in comparison.models:
        explained = "" if model.explained is None else f"{model.explained:.2f}"
        table.add_row(model.name, *_cells(model), *([explained] if has_explained else []))
    return table


def _cells(result: ModelResult | TeacherResult) -> list[str]:
    accuracy = result.accuracy
    return [
        f"{accuracy.value:.3f}",
        f"{accuracy.low:.3f} to {accuracy.high:.3f}",
        f"{result.log_loss:.3f}",
        f"{result.mean_margin:.3f}",
        str(result.ties),
    ]


def benchmark_table(comparison: Comparison) -> Table:
    """Scores of the items and differences from the baseline; one row a benchmark and model."""
    table = Table(title="Benchmarks", title_justify="left")
    for column in ("benchmark", "model", "total", "score of an item", "minus baseline, points"):
        table.add_column(column, justify="left" if column in ("benchmark", "model") else "right", overflow="fold")
    for benchmark in comparison.benchmarks:
        for name, score in benchmark.scores.items():
            difference = benchmark.differences.get(name)
            table.add_row(
                benchmark.name,
                name,
                f"{benchmark.totals[name]:.3f}",
                f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})",
                "" if difference is None else points(difference),
            )
        table.add_section()
    return table


def cost_table(comparison: Comparison) -> Table:
    """What a training takes."""
    table = Table(title="Cost of a training, mean over seeds", title_justify="left")
    for column in ("model", "time", "a step", "peak memory", "parameters"):
        table.add_column(column, justify="left" if column == "model" else "right", overflow="fold")
    for model in comparison.models:
        table.add_row(model.name, *cost_cells(model))
    return table


def cost_cells(model: ModelResult) -> list[str]:
    """Time, time of a step, memory, parameters, as text; "-" where it was not measured from start to end."""
    cost = model.cost
    step = "-" if cost.step_seconds is None else f"{1000 * cost.step_seconds:.0f} ms"
    memory = "-" if cost.peak_memory_bytes is None else f"{cost.peak_memory_bytes / 2**30:.1f} GiB"
    return [
        "-" if cost.seconds is None else duration(cost.seconds),
        step,
        memory if cost.peak_memory_of != "GPU" else f"{memory} of the GPU",
        f"{cost.parameters / 1e6:.1f} M",
    ]


def points(estimate: Estimate) -> str:
    """A difference in points with its interval."""
    return f"{signed(estimate.value)} ({signed(estimate.low)} to {signed(estimate.high)})"
