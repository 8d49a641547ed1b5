"""Tables and plots of the runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison import groups, of_group, table_of
from plots import draw_differences, draw_masking
from tables import markdown

from hf_interdistill.utils.atomic_io import write_atomically


def write_report(results: Sequence[dict], config: dict[str, Any], folder: Path) -> list[dict]:
    """Write `results.json` (the rows of the table), `table.md` and the plots; returns the rows.

    Args:
        results: the records of the runs.
    """
    runs = [record for record in results if not record["candidate"]]
    arms = [*config["arms"], *config["ensembles"]]
    table = [row for group in groups(runs) for row in table_of(of_group(runs, group), arms, config["means"])]
    write_atomically(folder / "results.json", json.dumps(table, indent=1) + "\n")
    write_atomically(folder / "table.md", markdown(table, results))
    for group in groups(runs):
        name, own = ".".join(group), of_group(runs, group)
        draw_differences(of_group(table, group), name, folder / f"differences.{name}.png")
        draw_masking(own, arms, config["diagnosis"]["fractions"], name, folder / f"masking.{name}.png")
    return table
