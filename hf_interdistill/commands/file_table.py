"""The files of a push, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ..hub.files import HubFile
from .tables import console


def print_files(title: str, files: Sequence[HubFile]) -> None:
    """Print names and sizes of files, and their sum."""
    table = Table(title=title, title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("bytes", justify="right")
    for file in files:
        table.add_row(file.path_in_repo, f"{file.size:,}")
    table.add_section()
    table.add_row("all", f"{sum(file.size for file in files):,}")
    console().print(table)
