"""The shell of every page: style for phones and for dark mode, and a footer with date, version and command."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ... import __version__
from ..wording import count, signed
from .charts import color_class
from .command import shown_command

_TEMPLATES = Path(__file__).parent / "templates"


def render_page(folder: Path, name: str, **values: Any) -> str:
    """A page from a template that extends `shell.html`. Every value is escaped, unless it is `Markup`.

    Args:
        folder: with the template. name: its file. values: what it shows.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda value: "n/a" if value != value else f"{100 * value:.1f} %",
        "bare": lambda value: "n/a" if value != value else f"{100 * value:.1f}",
        "number": lambda value: "n/a" if value != value else f"{value:.3f}",
        "signed": signed,
        "count": count,
        "color": color_class,
    }
    environment.globals |= {
        "version": __version__,
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "command": shown_command(),
    }
    return environment.get_template(name).render(**values)


def script_data(json_text: str) -> Markup:
    """JSON for a script element, which no text in it can end (escaped as by jinja's `tojson`, which recurses)."""
    for character in "<>&'":
        json_text = json_text.replace(character, f"\\u{ord(character):04x}")
    return Markup(json_text)
