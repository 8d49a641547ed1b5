"""Tables and plots of the runs.

`python recipes/studies/attention_hacking/report.py [GROUP ...] [--pictures FOLDER]` from the project's root prints the
long tables: every test of every arm against each reference, with losses and what `diagnose` says. A group is a
training file, a student and a condition, such as `hh_harmless.minilm.noise30`; none means all, and a minute or two.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from comparison import group_of, groups, of_group, table_of
from plots import draw_differences, draw_masking
from records import as_lines, read_runs
from tables import long_tables, short_tables

from hf_interdistill.utils.atomic_io import write_atomically

HERE = Path(__file__).parent
PICTURES = ("differences", "masking")
COLUMNS = (
    *("train", "student", "condition", "arm", "test_set", "metric", "seeds", "mean", "ci95"),
    *("delta_vs_bradley_terry", "delta_ci95"),
)


def write_report(results: Sequence[dict], config: dict[str, Any], folder: Path) -> None:
    """Write `results.json`, the short tables (`table.md`), and the pictures that the config's `report` names.

    Args:
        results: the records of the runs.
    """
    table = compare(results, config)
    write_atomically(folder / "results.json", as_lines(published(table, config["report"]["rows"])))
    write_atomically(folder / "table.md", short_tables(table, results))
    for name in config["report"]["pictures"]:
        _draw(name, table, results, config, folder)


def compare(results: Sequence[dict], config: dict[str, Any], names: Sequence[str] = ()) -> list[dict]:
    """The rows of `table_of` for the groups with these names, or for all.

    Raises:
        ValueError: no run is in a group of that name.
    """
    runs = [record for record in results if not record["candidate"]]
    known = {_name(group): group for group in groups(runs)}
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(f"No run is in the group {missing[0]!r}; the groups are {', '.join(known)}.")
    arms = [*config["arms"], *config["ensembles"]]
    chosen = [known[name] for name in names or known]
    return [row for group in chosen for row in table_of(of_group(runs, group), arms, config["means"])]


def published(table: Sequence[dict], entries: Sequence[dict[str, list[str]]]) -> list[dict]:
    """The rows for `results.json`, to a hundredth of a point.

    Args:
        entries: of columns and values; a row is kept that has one of the values in each column of an entry.
    """
    kept = [
        row
        for row in table
        if any(all(row[column] in values for column, values in entry.items()) for entry in entries)
    ]
    return [{column: _rounded(row[column]) for column in COLUMNS} for row in kept]


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def _name(group: Sequence[str]) -> str:
    return ".".join(group)


def _draw(name: str, table: Sequence[dict], results: Sequence[dict], config: dict[str, Any], folder: Path) -> None:
    """Draw a picture such as `masking.hh_harmless.minilm.clean`, if there are runs for it."""
    kind, _, group = name.partition(".")
    if kind not in PICTURES:
        raise ValueError(f"The picture {name!r} must begin with one of {', '.join(PICTURES)}, then name a group.")
    rows = [row for row in table if _name(group_of(row)) == group]
    if not rows:
        return
    path = folder / f"{name}.png"
    if kind == "differences":
        draw_differences(rows, group, path)
    else:
        runs = [record for record in of_group(results, group_of(rows[0])) if not record["candidate"]]
        arms = [*config["arms"], *config["ensembles"]]
        draw_masking(runs, arms, config["diagnosis"]["fractions"], group, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the long tables of some groups or all, and draw their pictures if asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("groups", nargs="*", help="TRAIN.STUDENT.CONDITION, such as hh_harmless.minilm.clean; all")
    parser.add_argument("--config", default=str(HERE / "study.yaml"), help="settings of the study")
    parser.add_argument("--pictures", help="folder for the plots of these groups; none are drawn without it")
    options = parser.parse_args(arguments)
    config = yaml.safe_load(Path(options.config).read_text(encoding="utf-8"))
    results = read_runs(Path(config["results_dir"]))
    table = compare(results, config, options.groups)
    print(long_tables(table, results), end="")
    if options.pictures:
        folder = Path(options.pictures)
        folder.mkdir(parents=True, exist_ok=True)
        for group in dict.fromkeys(_name(group_of(row)) for row in table):
            for kind in PICTURES:
                _draw(f"{kind}.{group}", table, results, config, folder)


if __name__ == "__main__":
    main()
