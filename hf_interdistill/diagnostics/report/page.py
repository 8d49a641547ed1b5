"""The report: JSON, and one page that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...utils.atomic_io import write_atomically
from ...utils.pages.page import render_page
from ..measures.estimates import Estimate
from ..result import Diagnosis
from .context_numbers import context_notes, context_rows
from .plots import draw
from .sections import SECTIONS

_TEMPLATES = Path(__file__).parent / "templates"


def write_report(diagnoses: Sequence[Diagnosis], folder: str) -> Path:
    """Write `diagnosis.json`, and `index.html` with all of it.

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
    write_atomically(path / "index.html", render(diagnoses))
    return path / "index.html"


def render(diagnoses: Sequence[Diagnosis]) -> str:
    """The page; everything that comes from models or data is escaped."""
    return render_page(
        _TEMPLATES,
        "report.html",
        diagnoses=diagnoses,
        findings=[each.findings() for each in diagnoses],
        sections=[each for each in SECTIONS if not each.is_optional or _is_asked(diagnoses, each.name)],
        optional_rows=[*context_rows(diagnoses), *_optional_rows(diagnoses)],
        notes={each.name: context_notes(diagnoses, each.name) for each in SECTIONS},
        plots=draw(diagnoses),
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
    ensembles = [each.disagreement for each in diagnoses]
    if any(ensembles):
        splits = [None if each is None else each.split for each in ensembles]
        spreads = [None if each is None else each.spread for each in ensembles]
        weakest = [None if each is None else min(each.members, key=lambda own: own.value) for each in ensembles]
        best = [None if each is None else max(each.members, key=lambda own: own.value) for each in ensembles]
        shown += [
            ("pairs in which members prefer different responses", splits, "percent"),
            ("spread of margins among members, over that of their mean among pairs", spreads, "number"),
            ("accuracy of the weakest member", weakest, "percent"),
            ("accuracy of the best member", best, "percent"),
        ]
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
