"""Tables on the terminal. Names, paths and keys of users are printed as they are, never as rich's markup."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def console() -> Console:
    """A console for text of users: `[chat]` is not markup, and `:cat:` is not an emoji."""
    return Console(markup=False, emoji=False, highlight=False)


def print_metrics(title: str, columns: dict[str, dict]) -> None:
    """A table of metrics, one column per dataset."""
    table = Table(title=title, title_justify="left")
    table.add_column("metric", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for metric in dict.fromkeys(key for values in columns.values() for key in values):
        table.add_row(metric, *(_shown(values.get(metric, "")) for values in columns.values()))
    console().print(table)


def _shown(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
