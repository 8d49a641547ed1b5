"""A search without a model or a tokenizer: rules of a text of letters, and answers to its requests."""

from __future__ import annotations

import numpy as np

from hf_interdistill.rain.search.requests import Decode, Embed, Judge
from hf_interdistill.rain.search.tree import Candidate


class Rules:
    """Texts of letters: token 0 is `a`, and so on; a text ends after `limit` tokens; `e` stops a rollout."""

    def __init__(self, limit=20):
        self.limit = limit

    def completion(self, tokens):
        return "".join(chr(97 + token) for token in tokens)

    def fragment(self, before, tokens):
        return self.completion(tokens)

    def stops_rollout(self, tokens):
        return bool(tokens) and tokens[-1] == 4

    def is_late(self):
        return False

    def finish_reason(self, tokens):
        return "length" if len(tokens) >= self.limit else None

    def remaining(self, tokens):
        return self.limit - len(tokens)


def drive(search, judge=lambda text: 0.0, embed=lambda text: np.array([1.0, 0.0]), rollout=(8,), steps=10_000):
    """Answer every request; returns the requests."""
    rules, requests = search.rules, []
    run = search.run()
    answer = None
    for _ in range(steps):
        try:
            request = run.send(answer)
        except StopIteration:
            return requests
        requests.append(request)
        answer = None
        if isinstance(request, Judge):
            answer = [judge(text) for text in request.completions]
        elif isinstance(request, Embed):
            answer = [embed(text) for text in request.texts]
        elif isinstance(request, Decode):
            answer = [rollout if task[1] is None else expand(rules, *task) for task in request.tasks]
    return requests


def expand(rules, node, expansion):
    is_last = len(node.tokens_from_origin()) + expansion.length >= rules.limit
    first = 0 if expansion.has_greedy else max(expansion.draws)
    count = expansion.count if expansion.length == 1 else expansion.has_greedy + len(expansion.draws)
    return [
        Candidate(((first + number) % 26,) * expansion.length, 1.0 / (1 + number), is_last) for number in range(count)
    ]
