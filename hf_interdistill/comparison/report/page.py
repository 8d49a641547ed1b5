"""The page of a comparison, which needs nothing else, and its numbers as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from ...utils.atomic_io import write_atomically
from ...utils.pages.charts import figure
from ...utils.pages.page import render_page
from ..config import BASELINE
from ..result import Comparison, difference_text
from .intervals import interval_plot
from .text import cost_cells

_TEMPLATES = Path(__file__).parent / "templates"
_MEASURES = {"label_noise": "label noise", "best_of_n": "best of n"}


def write_page(comparison: Comparison, folder: str) -> Path:
    """Write `comparison.json` and `index.html`; returns the page."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_atomically(path / "comparison.json", json.dumps(comparison.to_dict(), indent=2) + "\n")
    write_atomically(path / "index.html", render(comparison))
    return path / "index.html"


def render(comparison: Comparison) -> str:
    """The page; everything that comes from recipes, models or data is escaped."""
    findings = {model.name: model.diagnosis.findings() for model in comparison.models if model.diagnosis is not None}
    return render_page(
        _TEMPLATES,
        "comparison.html",
        comparison=comparison,
        baseline=BASELINE,
        sentences={
            model.name: difference_text(model.name, model.difference)
            for model in comparison.models
            if model.difference is not None
        },
        plot=figure(interval_plot(comparison)),
        findings=findings,
        measures={
            name: _MEASURES.get(name, name.replace("_", " "))
            for name in dict.fromkeys(key for each in findings.values() for key in each)
        },
        costs={model.name: cost_cells(model) for model in comparison.models},
    )
