"""What every page must be: well-formed, complete in itself, readable on a phone, with three verdicts and a footer."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from hf_interdistill import __version__

VOID = {"meta", "br", "link", "img", "input", "hr"}
VERDICTS = {"pass", "flag", "inconclusive"}


class Page(HTMLParser):
    """A page as its elements: closes in order, or fails.

    Attributes:
        elements: (tag, attributes, text) of each, in the order of their beginnings; the text is all that is below.
        scripts: the text of each script. deepest: nesting. text: all that is shown, single-spaced.
    """

    def __init__(self, source: str):
        super().__init__()
        self.source = source
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.scripts: list[str] = []
        self.parts: list[str] = []
        self.deepest = 0
        self._open: list[int] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)
            self.deepest = max(self.deepest, len(self._open))

    def handle_endtag(self, tag):
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data):
        tag = self.elements[self._open[-1]][0] if self._open else ""
        if tag == "script":
            self.scripts[-1] += data
        if tag not in ("script", "style"):
            self.parts.append(data)
        for number in self._open:
            self.elements[number][2].append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.parts).split())

    def all(self, tag: str, style: str = "") -> list[tuple[dict[str, str], str]]:
        """Attributes and text of the elements of a tag that have every class in `style`."""
        wanted = set(style.split())
        return [
            (attributes, " ".join("".join(parts).split()))
            for name, attributes, parts in self.elements
            if name == tag and wanted <= set(attributes.get("class", "").split())
        ]


def check_page(source: str, command: str | None) -> Page:
    """A page that holds what all pages promise; `command`: in the footer, `None` for Python."""
    page = Page(source)
    assert source.lstrip().lower().startswith("<!doctype html>") and page.all("html")[0][0]["lang"] == "en"
    metas = [attributes for attributes, _ in page.all("meta")]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    assert {"name": "color-scheme", "content": "light dark"} in metas
    ((_, style),) = page.all("style")
    assert "@media (prefers-color-scheme: dark)" in style
    _needs_nothing_else(page, style)
    _fits_a_phone(page, style)
    # Every color is one of the page's own, so that all of it is dark in dark mode.
    rules = re.sub(r":root \{[^}]*\}|@media print \{.*", "", style)
    assert not re.search(r"#[0-9a-fA-F]{3,8}\b|rgba?\(|:\s*(white|black)\b", rules)
    assert {text for _, text in page.all("span", "badge")} <= VERDICTS
    ((_, footer),) = page.all("footer")
    assert f"hf_interdistill {__version__}" in footer and re.search(r"on \d{4}-\d\d-\d\d \d\d:\d\d UTC\.", footer)
    if command is None:
        assert "Written from Python, without a command." in footer
    else:
        assert f"Command: {command}" in footer
    return page


def _needs_nothing_else(page: Page, style: str) -> None:
    """Nothing is loaded; links lead to a place on the page or a file beside it."""
    assert not re.search(r"url\(|@import|@font-face", style)
    for tag, attributes, _ in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form", "input", "image", "use"), tag
        assert "src" not in attributes and "srcset" not in attributes and "action" not in attributes
        assert not any(name.startswith("on") for name in attributes), attributes
        assert re.fullmatch(r"#[\w-]+|[\w/.-]+\.(html|json)", attributes.get("href", "#a")), attributes


def _fits_a_phone(page: Page, style: str) -> None:
    """No width above that of a phone of 390 pixels is fixed, and tables scroll inside their own box."""
    styles = [style, *(attributes.get("style", "") for _, attributes, _ in page.elements)]
    for name, value, unit in re.findall(r"([\w-]*width)\s*:\s*([\d.]+)(px|rem|em)", " ".join(styles)):
        assert name == "max-width" or float(value) * (1 if unit == "px" else 16) <= 300, (name, value, unit)
    assert not any("width" in attributes for tag, attributes, _ in page.elements if tag not in ("rect", "meta"))
    assert len(re.findall(r"<table", page.source)) == len(re.findall(r'<div class="scroll"><table', page.source))
