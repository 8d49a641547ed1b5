"""Results of a search: the tree as plain values, the answer and the costs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...scoring.formatting import is_messages, message_texts


@dataclass
class TreeRecord:
    """A search tree as plain values.

    Args:
        root: nested nodes, each with `text`, `tokens`, `visits`, `true_visits`, `value`, `prior`, `rewinds`,
            `is_committed`, `is_terminal` and `children`.
        prompt: its text, or of a conversation the turns, each with `role` and `content`.
        completion: the committed text.
        strategy: what searched, of `strategies.STRATEGIES`.

    Relations: `views.py` draws it and saves it to a file.
    """

    root: dict[str, Any]
    prompt: str | list[dict[str, str]] = ""
    completion: str = ""
    strategy: str = "rain"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**self._head(), "root": self.root}

    def _head(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "completion": self.completion, "strategy": self.strategy}

    def to_json(self) -> str:
        """`to_dict` as JSON, for a tree of any depth.

        Python's own `json.loads` recurses, so it reads back some hundred levels only. Deeper trees need a reader that
        does not recurse.
        """
        head = json.dumps(self._head(), ensure_ascii=False)
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
            both including the judge; `judge_calls` (texts scored, including speculative ones); `iterations` (of other
            strategies than `rain`: scored candidates); `rewinds` (restarts at a root); `committed_tokens`; `seconds`
            (since the search of this prompt started). Of a served model also `requests`. `forward_passes` are then
            the tokens that its requests generated one after another, and `forward_tokens` leave out cached ones if
            the server reports them (`--enable-prompt-tokens-details`).
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


def shown_prompt(prompt: Any) -> str | list[dict[str, str]]:
    """A prompt as plain values: text, or turns of `role` and `content`."""
    if is_messages(prompt):
        return [{"role": str(each["role"]), "content": " ".join(message_texts(each))} for each in prompt]
    return prompt if isinstance(prompt, str) else repr(prompt)


def record_tree(search, prompt: Any) -> TreeRecord:
    """The tree of a search as plain values.

    Args:
        search: the search. prompt: as scorers see it.
    """
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
    return TreeRecord(plain[root], shown_prompt(prompt), rules.completion(search.committed), search.config.strategy)


def record_search(
    search, shown: Any, costs: Mapping[str, float], seconds: float, *, is_finished: bool, error: str | None = None
) -> RainRecord:
    """The record of a search.

    Args:
        search: the search. shown: the prompt as scorers see it. costs: by name, see `RainRecord.stats`.
        seconds: since the search started. is_finished: whether its text has ended. error: why it could not.
    """
    stats = {
        **{name: costs[name] for name in ("forward_passes", "forward_tokens", "judge_calls")},
        "iterations": search.iterations,
        "rewinds": sum(search.rewinds.values()),
        "committed_tokens": len(search.committed),
        "seconds": seconds,
        **{name: costs[name] for name in ("requests",) if name in costs},
    }
    tree = record_tree(search, shown)
    reason = search.rules.finish_reason(search.committed) if is_finished else None
    return RainRecord(tree, stats, list(search.committed), tree.completion, reason or "unfinished", error)
