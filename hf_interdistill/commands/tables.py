"""Tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def print_metrics(title: str, columns: dict[str, dict]) -> None:
    """A table of metrics, one column per dataset."""
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for name in columns:
        table.add_column(name, justify="right")
    for metric in dict.fromkeys(key for values in columns.values() for key in values):
        table.add_row(metric, *(_shown(values.get(metric, "")) for values in columns.values()))
    Console().print(table)


def _shown(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
