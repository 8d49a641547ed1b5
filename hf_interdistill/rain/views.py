"""Search trees to look at: Mermaid, and an HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .records import TreeRecord

_TEMPLATES = Path(__file__).parent / "templates"
_NEVER_CUT = 1


def walk(root: dict[str, Any]) -> Iterator[tuple[dict[str, Any], int, int | None]]:
    """Nodes of a tree in plain values, parents first: `(node, number, number of its parent)`."""
    stack: list[tuple[dict[str, Any], int | None]] = [(root, None)]
    number = 0
    while stack:
        node, parent = stack.pop()
        yield node, number, parent
        stack.extend((child, number) for child in reversed(node["children"]))
        number += 1


def show_text(text: str) -> str:
    """Text with white space made visible where it would be lost."""
    return text.replace("\n", "⏎").replace("\t", "⇥") or "∅"


def to_mermaid(record: TreeRecord, max_children: int = 5) -> str:
    """A Mermaid flowchart of visited nodes; the committed path is drawn strong.

    Args:
        record: the tree.
        max_children: most visited children drawn of each node (the committed one always); the rest is counted.
    """
    lines = ["flowchart LR", "  classDef committed fill:#0b6e4f,stroke:#0b6e4f,color:#ffffff,stroke-width:2px"]
    for node, number, parent in walk(pruned(record.root, max_children)):
        text = record.prompt[-40:] if parent is None else show_text(node["text"])
        label = f"{text}<br/>n {node['visits']:g} q {node['value']:+.2f} p {node['prior']:.2f}"
        if node["rewinds"]:
            label += f"<br/>{node['rewinds']} rewinds"
        if node["hidden"]:
            label += f"<br/>{node['hidden']} more"
        suffix = ":::committed" if node["is_committed"] else ""
        lines.append(f'  n{number}["{_quote(label)}"]{suffix}')
        if parent is not None:
            lines.append(f"  n{parent} {'==>' if node['is_committed'] else '-->'} n{number}")
    return "\n".join(lines) + "\n"


def _quote(label: str) -> str:
    """Mermaid label text: everything that has a meaning there as an entity, line breaks kept."""
    parts = label.split("<br/>")
    safe = ["".join(c if c.isalnum() or c in " .,+-⏎⇥∅" else f"#{ord(c)};" for c in part) for part in parts]
    return "<br/>".join(safe)


def pruned(root: dict[str, Any], max_children: int) -> dict[str, Any]:
    """A copy with visited children only, at most `max_children` each; `hidden` counts those left out."""
    if max_children < _NEVER_CUT:
        raise ValueError(f"`max_children` is {max_children}, but must be at least 1.")
    copies: dict[int, dict[str, Any]] = {}
    result: dict[str, Any] = {}
    stack = [(root, None)]
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


def unfold(root: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tree below the root as `open`, `more` (children left out) and `close`: a page without recursion."""
    stack: list[tuple[str, dict[str, Any]]] = [("inside", root)]
    while stack:
        kind, node = stack.pop()
        if kind != "inside":
            yield kind, node
            continue
        inner: list[tuple[str, dict[str, Any]]] = []
        for child in node["children"]:
            inner += [("open", child), ("inside", child), ("close", child)]
        if node["hidden"]:
            inner.append(("more", node))
        stack.extend(reversed(inner))


def to_html(record: TreeRecord, title: str = "RAIN search tree", stats: dict[str, float] | None = None) -> str:
    """A self-contained page: the committed text token set by token set, and the tree to unfold.

    Args:
        record: the tree.
        title: the page's title.
        stats: figures to show (`RainRecord.stats`).
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    nodes = [node for node, _, _ in walk(record.root)]
    path = _committed(record.root)
    return environment.get_template("tree.html").render(
        title=title,
        record=record,
        events=list(unfold(pruned(record.root, max(len(node["children"]) for node in nodes) or 1))),
        steps=[{"number": number + 1, "node": node, "shown": show_text(node["text"])} for number, node in path],
        stats=stats or {},
        counts={
            "token sets": len(nodes) - 1,
            "visited": sum(1 for node in nodes[1:] if node["true_visits"]),
            "committed": len(path),
            "rewinds": sum(node["rewinds"] for node in nodes),
        },
        show_text=show_text,
    )


def _committed(root: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The committed nodes in order."""
    nodes, node = [], root
    while node is not None:
        node = next((child for child in node["children"] if child["is_committed"]), None)
        if node is not None:
            nodes.append(node)
    return list(enumerate(nodes))
