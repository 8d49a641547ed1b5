"""Views of search trees: a Mermaid flowchart, a self-contained HTML page, and files of either or of JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ...utils.pages.page import render_page, script_data
from ..strategies import STRATEGIES
from .records import TreeRecord

_TEMPLATES = Path(__file__).parent / "templates"
_DEEPEST = 10  # level whose rows fold no more


def walk(root: dict[str, Any]) -> Iterator[tuple[dict[str, Any], int, int | None]]:
    """Nodes of a tree, parents first, as `(node, number, number of its parent)`."""
    stack: list[tuple[dict[str, Any], int | None]] = [(root, None)]
    number = 0
    while stack:
        node, parent = stack.pop()
        yield node, number, parent
        stack.extend((child, number) for child in reversed(node["children"]))
        number += 1


def show_text(text: str) -> str:
    """Text with line breaks and tabs made visible."""
    return text.replace("\n", "⏎").replace("\t", "⇥") or "∅"


def to_mermaid(record: TreeRecord, max_children: int = 5, max_nodes: int = 300) -> str:
    """A Mermaid flowchart of visited nodes, with the committed path highlighted.

    Args:
        record: the tree.
        max_children: children drawn per node: the committed one and the most visited ones. The others are counted.
        max_nodes: nodes drawn: those of the committed path first, then the most visited ones. Mermaid's own limits are
            500 edges and 50,000 characters.
    """
    if max_nodes < 1:
        raise ValueError(f"`max_nodes` is {max_nodes}, but must be at least 1.")
    nodes = list(walk(pruned(record.root, max_children)))
    ranked = sorted(nodes, key=lambda each: (not each[0]["is_committed"], -each[0]["true_visits"], each[1]))
    drawn = {0} | {number for _, number, _ in [each for each in ranked if each[1]][: max_nodes - 1]}
    left_out = Counter(parent for _, number, parent in nodes if number not in drawn)
    lines = ["flowchart LR", "  classDef committed fill:#0b6e4f,stroke:#0b6e4f,color:#ffffff,stroke-width:2px"]
    for node, number, parent in nodes:
        if number not in drawn or not (parent is None or parent in drawn):
            continue
        text = _end_of_prompt(record) if parent is None else show_text(node["text"])
        label = f"{text}<br/>n {node['visits']:g} q {node['value']:+.2f} p {node['prior']:.2f}"
        if node["rewinds"]:
            label += f"<br/>{node['rewinds']} rewinds"
        if node["hidden"] + left_out[number]:
            label += f"<br/>{node['hidden'] + left_out[number]} more"
        suffix = ":::committed" if node["is_committed"] else ""
        lines.append(f'  n{number}["{_quote(label)}"]{suffix}')
        if parent is not None:
            lines.append(f"  n{parent} {'==>' if node['is_committed'] else '-->'} n{number}")
    return "\n".join(lines) + "\n"


def _end_of_prompt(record: TreeRecord) -> str:
    turns = record.prompt
    return (turns if isinstance(turns, str) else turns[-1]["content"] if turns else "")[-40:]


def _quote(label: str) -> str:
    """Mermaid label text: special characters become entities, line breaks stay."""
    parts = label.split("<br/>")
    safe = ["".join(c if c.isalnum() or c in " .,+-⏎⇥∅" else f"#{ord(c)};" for c in part) for part in parts]
    return "<br/>".join(safe)


def pruned(root: dict[str, Any], max_children: int) -> dict[str, Any]:
    """A copy with visited children only, at most `max_children` per node; `hidden` counts the others."""
    if max_children < 1:
        raise ValueError(f"`max_children` is {max_children}, but must be at least 1.")
    copies: dict[int, dict[str, Any]] = {}
    result: dict[str, Any] = {}
    stack: list[tuple[dict[str, Any], dict[str, Any] | None]] = [(root, None)]
    while stack:
        node, parent = stack.pop()
        ranked = sorted(
            node["children"], key=lambda child: (child["is_committed"], child["visits"], child["prior"]), reverse=True
        )
        shown = [child for child in ranked if child["true_visits"] or child["is_committed"]][:max_children]
        copied = {**node, "children": [], "hidden": len(ranked) - len(shown)}
        copies[id(node)] = copied
        if parent is None:
            result = copied
        else:
            copies[id(parent)]["children"].append(copied)
        stack.extend((child, node) for child in reversed(shown))
    return result


@dataclass(frozen=True)
class Row:
    """One row of the page: a node, or a count of children that were never visited.

    Args:
        level: 0 for the committed path, 1 for an alternative to a committed step, 2 and more for its descendants.
        node: the node; `None` for a count.
        hidden: the count.
        step: number on the committed path.
        is_parent: whether the rows below belong to this one.
        closes: how many such elements end after this row.
    """

    level: int
    node: dict[str, Any] | None = None
    hidden: int = 0
    step: int = 0
    is_parent: bool = False
    closes: int = 0

    @property
    def is_folding(self) -> bool:
        """Whether the rows below are in an element that folds: of a parent that is not too deep."""
        return self.is_parent and self.level < _DEEPEST


def lay_out(root: dict[str, Any]) -> list[Row]:
    """A pruned tree as rows: each committed step, and below it its alternatives.

    Steps are not below one another, and elements are nested to a depth alone, because browsers limit the nesting to
    some hundred levels, and a tree is as deep as its text has steps.
    """
    rows: list[Row] = []
    step = 0
    parent: dict[str, Any] | None = root
    while parent is not None:
        chosen = next((child for child in parent["children"] if child["is_committed"]), None)
        others = [child for child in parent["children"] if child is not chosen]
        if chosen is not None:
            step += 1
            rows.append(Row(0, chosen, step=step, is_parent=bool(others or parent["hidden"])))
        level = 0 if chosen is None else 1
        for other in others:
            rows.extend(_below(other, level))
        if parent["hidden"]:
            rows.append(Row(level, hidden=parent["hidden"]))
        parent = chosen
    return _closed(rows)


def _closed(rows: list[Row]) -> list[Row]:
    """The rows with the number of folding elements that end after each."""
    open_levels: list[int] = []
    found = []
    for row, following in zip_longest(rows, rows[1:]):
        if row.is_folding:
            open_levels.append(row.level)
        closes = 0
        while open_levels and (following is None or following.level <= open_levels[-1]):
            open_levels.pop()
            closes += 1
        found.append(replace(row, closes=closes))
    return found


def _below(root: dict[str, Any], level: int) -> Iterator[Row]:
    stack = [Row(level, root, is_parent=bool(root["children"] or root["hidden"]))]
    while stack:
        row = stack.pop()
        yield row
        if row.node is None:
            continue
        if row.node["hidden"]:
            stack.append(Row(row.level + 1, hidden=row.node["hidden"]))
        for child in reversed(row.node["children"]):
            stack.append(Row(row.level + 1, child, is_parent=bool(child["children"] or child["hidden"])))


def to_html(record: TreeRecord, title: str | None = None, stats: dict[str, float] | None = None) -> str:
    """A self-contained page: each committed token set, open, and below it its alternatives, folded.

    Args:
        record: the tree.
        title: the title of the page; by default the name of the strategy and what the page shows.
        stats: figures to show (`RainRecord.stats`).
    """
    strategy = STRATEGIES[record.strategy]
    nodes = [node for node, _, _ in walk(record.root)]
    path = _committed(record.root)
    return render_page(
        _TEMPLATES,
        "tree.html",
        title=f"Search tree of {strategy.title}" if title is None else title,
        summary=strategy.summary.split("`"),
        record=record,
        rows=lay_out(pruned(record.root, max(len(node["children"]) for node in nodes) or 1)),
        data=script_data(record.to_json()),
        path=path,
        stats=stats or {},
        counts={
            "token sets": len(nodes) - 1,
            "visited": sum(1 for node in nodes[1:] if node["true_visits"]),
            "committed": len(path),
            **({"rewinds": sum(node["rewinds"] for node in nodes)} if record.strategy == "rain" else {}),
        },
        show_text=show_text,
        deepest=_DEEPEST,
    )


def _committed(root: dict[str, Any]) -> list[dict[str, Any]]:
    """The committed nodes in order."""
    nodes: list[dict[str, Any]] = []
    children = root["children"]
    while committed := [child for child in children if child["is_committed"]]:
        nodes.append(committed[0])
        children = committed[0]["children"]
    return nodes


def save(record: TreeRecord, path: str | Path) -> Path:
    """Write a tree to a file. The suffix of `path` selects the format: `.json`, `.html` or `.mmd` (Mermaid)."""
    path = Path(path)
    writers: dict[str, Callable[[TreeRecord], str]] = {
        ".json": TreeRecord.to_json,
        ".html": to_html,
        ".mmd": to_mermaid,
    }
    if path.suffix not in writers:
        raise ValueError(f"`{path}` ends with {path.suffix!r}, but a tree is saved as {', '.join(writers)}.")
    path.write_text(writers[path.suffix](record), encoding="utf-8")
    return path
