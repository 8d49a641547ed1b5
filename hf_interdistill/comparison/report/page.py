"""The page of a comparison, which needs nothing else, and its numbers as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ... import __version__
from ...utils.atomic_io import write_atomically
from ..config import BASELINE
from ..result import Comparison, count, signed
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
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    environment.filters["bare"] = lambda share: f"{100 * share:.1f}"
    environment.filters["signed"] = signed
    environment.filters["count"] = count
    findings = {model.name: model.diagnosis.findings() for model in comparison.models if model.diagnosis is not None}
    return environment.get_template("comparison.html").render(
        comparison=comparison,
        baseline=BASELINE,
        verdicts=comparison.verdicts(),
        plot=interval_plot(comparison),
        findings=findings,
        measures={
            name: _MEASURES.get(name, name)
            for name in dict.fromkeys(key for each in findings.values() for key in each)
        },
        costs={model.name: cost_cells(model) for model in comparison.models},
        version=__version__,
    )
