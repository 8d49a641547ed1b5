"""Results of a search: the tree as plain values, the answer and the costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class TreeRecord:
    """A search tree as plain values.

    Args:
        root: nested nodes, each with `text`, `tokens`, `visits`, `true_visits`, `value`, `prior`, `rewinds`,
            `is_committed`, `is_terminal` and `children`.
        prompt: the prompt's text.
        completion: the committed text.

    Relations: `views.py` draws it and saves it to a file.
    """

    root: dict[str, Any]
    prompt: str = ""
    completion: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"prompt": self.prompt, "completion": self.completion, "root": self.root}

    def to_json(self) -> str:
        """`to_dict` as JSON, for a tree of any depth.

        Python's own `json.loads` recurses, so it reads back some hundred levels only. Deeper trees need a reader that
        does not recurse.
        """
        head = json.dumps({"prompt": self.prompt, "completion": self.completion}, ensure_ascii=False)
        return f'{head[:-1]}, "root": {"".join(_nested(self.root))}}}'


def _nested(root: dict[str, Any]) -> Iterator[str]:
    """The JSON of nested nodes, in pieces. `json.dumps` recurses, and a tree can be as deep as the text is long."""
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
    """The result of one prompt.

    Args:
        tree: the search tree.
        stats: `forward_passes` (of batches that included this prompt) and `forward_tokens` (read for this prompt),
            both including the judge; `judge_calls` (texts scored, including speculative ones); `iterations`;
            `rewinds` (restarts at a root); `committed_tokens`; `seconds` (since the search of this prompt started).
        tokens: committed token ids.
        text: the committed text.
        finish_reason: `eos`, `turn`, `stop`, `time`, `length`, `context`, or `unfinished`.
        error: in a job, why the scorer could not score this prompt, which ended the search early.
    """

    tree: TreeRecord
    stats: dict[str, float]
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = "unfinished"
    error: str | None = None


def record_tree(search, prompt: str) -> TreeRecord:
    """The tree of a `PromptSearch` as plain values."""
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
