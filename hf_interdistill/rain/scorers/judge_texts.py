"""The tokens that a judge reads, and the values of its answers, whatever computes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...scoring.control_tokens import break_up, control_pattern
from ...scoring.formatting import Text, is_messages, message_texts
from .base import Exchange
from .judge_prompt import JudgePrompt

# Answers to calibrate with, as published (Zhao et al., arXiv 2102.09690).
CONTENT_FREE = ("N/A", "[MASK]", "")


class JudgeTexts:
    """Renders exchanges for a judge, and encodes them.

    Args:
        prompt: the judge prompt. tokenizer: the judge's.
    """

    def __init__(self, prompt: JudgePrompt, tokenizer):
        self.prompt, self.tokenizer = prompt, tokenizer
        self._control = control_pattern(tokenizer)

    def render(self, exchange: Exchange) -> list[str]:
        """The judge's text for each order. Control tokens spelled in the exchange are broken up into plain text."""
        pattern = self._control
        prompt: Text
        if is_messages(exchange.prompt):
            prompt = [
                {**message, "content": break_up(" ".join(message_texts(message)), pattern)}
                for message in exchange.prompt
            ]
        else:
            prompt = break_up(exchange.prompt, pattern)
        return self.prompt.texts(Exchange(prompt, break_up(exchange.completion, pattern)))

    def encode(self, rendered: Sequence[list[str]]) -> list[list[list[int]]]:
        """Token ids of rendered texts, for each exchange and order, up to the label.

        The label is tokenized with the text and then removed: a tokenizer may merge it with what precedes it.
        """
        texts = [text + self.prompt.labels[0] for orders in rendered for text in orders]
        ids = iter(self.tokenizer(texts, verbose=False)["input_ids"])
        return [[next(ids)[:-1] for _ in orders] for orders in rendered]


def label_values(logits: torch.Tensor, vote: str) -> list[float]:
    """Values from label logits `(exchanges, orders, 2)`; the second order has the labels swapped.

    Args:
        logits: or log probabilities; only differences count. vote: `hard` or `probability`.
    """
    positive = logits.clone()
    if logits.shape[1] == 2:
        positive[:, 1] = logits[:, 1].flip(-1)
    if vote == "hard":
        votes = (positive[..., 0] > positive[..., 1]).double()
    else:
        votes = torch.softmax(positive.double(), dim=-1)[..., 0]
    return (2 * votes.mean(dim=-1) - 1).tolist()


def mean_log_odds(logits: torch.Tensor) -> torch.Tensor:
    """Mean log-odds of the labels for content-free answers, `(prompts, orders)`.

    Args:
        logits: `(prompts * answers, orders, 2)`, the content-free answers of a prompt side by side.
    """
    log_odds = logits[..., 0] - logits[..., 1]
    return log_odds.view(len(logits) // len(CONTENT_FREE), len(CONTENT_FREE), logits.shape[1]).mean(dim=1)
