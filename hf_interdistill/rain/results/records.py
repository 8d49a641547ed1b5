"""What a search leaves behind: the tree in plain values, and what it cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STAT_KEYS = (
    "forward_passes",
    "forward_tokens",
    "judge_calls",
    "iterations",
    "rewinds",
    "committed_tokens",
    "seconds",
)


@dataclass
class TreeRecord:
    """A search tree in plain values.

    Args:
        root: nested nodes, each with `text`, `tokens`, `visits`, `true_visits`, `value`, `prior`, `rewinds`,
            `is_committed`, `is_terminal` and `children`.
        prompt: the prompt's text.
        completion: the committed text.

    Relations: `views.py` draws it.
    """

    root: dict[str, Any]
    prompt: str = ""
    completion: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"prompt": self.prompt, "completion": self.completion, "root": self.root}

    def to_json(self) -> str:
        """`to_dict` as JSON, however deep the tree is.

        Python's own `json.loads` reads back some hundred levels; what reads deeper trees must not recurse either.
        """
        head = json.dumps({"prompt": self.prompt, "completion": self.completion}, ensure_ascii=False)
        return f'{head[:-1]}, "root": {"".join(_nested(self.root))}}}'

    def to_mermaid(self, **options) -> str:
        """A Mermaid flowchart; options as in `views.to_mermaid`."""
        from .views import to_mermaid

        return to_mermaid(self, **options)

    def to_html(self, **options) -> str:
        """A page that needs nothing else; options as in `views.to_html`."""
        from .views import to_html

        return to_html(self, **options)

    def save(self, path: str | Path) -> Path:
        """Write `.json`, `.html` or `.mmd` (Mermaid), by the ending of `path`."""
        path = Path(path)
        writers = {".json": self.to_json, ".html": self.to_html, ".mmd": self.to_mermaid}
        if path.suffix not in writers:
            raise ValueError(f"`{path}` ends with {path.suffix!r}, but a tree is saved as {', '.join(writers)}.")
        path.write_text(writers[path.suffix](), encoding="utf-8")
        return path


def _nested(root: dict[str, Any]) -> Iterator[str]:
    """The JSON of nested nodes in pieces; `json.dumps` would recurse, and trees get as deep as texts are long."""
    stack: list[str | dict[str, Any]] = [root]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
            continue
        own = {key: value for key, value in item.items() if key != "children"}
        yield f'{json.dumps(own, ensure_ascii=False)[:-1]}, "children": ['
        stack.append("]}")
        for number, child in reversed(list(enumerate(item["children"]))):
            stack.append(child)
            if number:
                stack.append(", ")


@dataclass
class RainRecord:
    """One prompt's result.

    Args:
        tree: the search tree.
        stats: `forward_passes` and `forward_tokens` (passes that this prompt took part in, tokens read for it, judge
            included), `judge_calls` (texts judged; some before they are asked for), `iterations`, `rewinds` (restarts
            at a root), `committed_tokens`, `seconds` (since the prompt was started).
        tokens: committed token ids.
        text: the committed text.
        finish_reason: `eos`, `turn`, `stop`, `length`, `context`, or `unfinished`.
    """

    tree: TreeRecord
    stats: dict[str, float]
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = "unfinished"


def record_tree(search, prompt: str) -> TreeRecord:
    """Plain values of a `PromptSearch`'s tree."""
    rules = search.rules
    root = search.tree.origin
    plain: dict = {}
    for node in root.subtree():
        before = node.parent.tokens_from_origin() if node.parent else ()
        plain[node] = {
            "text": rules.fragment(before, node.tokens) if node.tokens else "",
            "tokens": [int(token) for token in node.tokens],
            "visits": round(float(node.visits), 6),
            "true_visits": node.true_visits,
            "value": round(float(node.value), 6),
            "prior": round(float(node.prior), 6),
            "rewinds": search.rewinds.get(node, 0),
            "is_committed": node.is_committed,
            "is_terminal": node.is_terminal,
            "children": [],
        }
        if node.parent is not None:
            plain[node.parent]["children"].append(plain[node])
    return TreeRecord(plain[root], prompt, rules.completion(search.committed))
