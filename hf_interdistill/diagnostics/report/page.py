"""The report: JSON, pictures, and one page that needs nothing else."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...utils.atomic_io import write_atomically
from ..measures.estimates import Estimate
from ..result import Diagnosis
from .context_numbers import context_notes, context_rows
from .drawing import color
from .plots import draw
from .sections import SECTIONS

_TEMPLATES = Path(__file__).parent / "templates"


def write_report(diagnoses: Sequence[Diagnosis], folder: str) -> Path:
    """Write `diagnosis.json`, one PNG per measure, and `index.html` with all of it.

    Args:
        diagnoses: of one or several models, shown side by side in this order.
        folder: where to write.

    Returns:
        the page.

    Raises:
        ValueError: none, or two of one name.
    """
    names = [diagnosis.model for diagnosis in diagnoses]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"A report needs one or more models of different names, but these are {names}.")
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_atomically(path / "diagnosis.json", json.dumps([each.to_dict() for each in diagnoses], indent=2))
    pictures = draw(diagnoses)
    for name, picture in pictures.items():
        (path / f"{name}.png").write_bytes(picture)
    write_atomically(path / "index.html", render(diagnoses, pictures))
    return path / "index.html"


def render(diagnoses: Sequence[Diagnosis], pictures: dict[str, bytes]) -> str:
    """The page; everything that comes from models or data is escaped."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: "n/a" if value != value else f"{100 * value:.1f} %"
    environment.filters["number"] = lambda value: "n/a" if value != value else f"{value:.3f}"
    return environment.get_template("report.html").render(
        diagnoses=diagnoses,
        findings=[each.findings() for each in diagnoses],
        colors=[color(number) for number in range(len(diagnoses))],
        sections=[each for each in SECTIONS if not each.is_optional or _is_asked(diagnoses, each.name)],
        optional_rows=[*context_rows(diagnoses), *_optional_rows(diagnoses)],
        notes={each.name: context_notes(diagnoses, each.name) for each in SECTIONS},
        pictures={name: b64encode(picture).decode() for name, picture in pictures.items()},
    )


def _is_asked(diagnoses: Sequence[Diagnosis], measure: str) -> bool:
    """Whether some model has a measure, or was asked for it in vain."""
    return any(getattr(each, measure) is not None or measure in each.context_problems for each in diagnoses)


def _optional_rows(diagnoses: Sequence[Diagnosis]) -> list[tuple[str, list[Estimate | None], str]]:
    """Rows of the table of numbers for the measures that not every model has: label, one estimate per model, kind."""
    noise, curves = [each.label_noise for each in diagnoses], [each.best_of_n for each in diagnoses]
    shares = sorted({share for each in noise if each for share in each.shares})
    rows = [
        (
            f"accuracy lost with {100 * share:g} % of training labels flipped",
            [None if each is None else each.at(share) for each in noise],
        )
        for share in shares
    ]
    shown: list[tuple[str, list[Estimate | None], str]] = [(*row, "percent") for row in rows]
    if any(curves):
        gains = [None if each is None else each.gold_gain[-1] for each in curves]
        efficiencies = [None if each is None else each.efficiency for each in curves]
        drops = [None if each is None else each.drop for each in curves]
        shown += [
            ("gold score over a random choice, at the largest n", gains, "number"),
            ("the same, as a share of the best possible choice", efficiencies, "percent"),
            ("gold score lost since the best smaller n", drops, "number"),
        ]
    return shown
