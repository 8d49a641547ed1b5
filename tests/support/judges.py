"""A short judge prompt, and its values worked out by hand."""

from __future__ import annotations

import math

import torch

from hf_interdistill.rain.scorers.judge_prompt import JudgePrompt

SHORT = JudgePrompt(
    name="short",
    examples="Be kind. (A)\nBe mean. (B)\n",
    plain="Human: {prompt}\nAssistant: {completion}",
    question="\n(A) {first}\n(B) {second}\nAnswer: (",
    positive="kind",
    negative="mean",
)


def by_hand(model, tokenizer, prompt, exchanges, vote) -> list[float]:
    """One plain forward pass per order."""
    values = []
    for exchange in exchanges:
        votes = []
        for order, text in enumerate(prompt.texts(exchange)):
            ids = [tokenizer(text + label)["input_ids"] for label in prompt.labels]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids[0][:-1]])).logits[0, -1]
            first, second = logits[ids[0][-1]].item(), logits[ids[1][-1]].item()
            good, bad = (first, second) if order == 0 else (second, first)
            votes.append(float(good > bad) if vote == "hard" else 1 / (1 + math.exp(bad - good)))
        values.append(2 * sum(votes) / len(votes) - 1)
    return values
