"""Which candidates to keep. Pure functions of texts and rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..scoring.formatting import Text, is_messages


def best_candidates(
    completions: Sequence[Text], rewards: Sequence[float], top_k: int = 1, threshold: float | None = None
) -> list[int]:
    """Numbers of the `top_k` different completions with the highest rewards, best first.

    Args:
        completions, rewards: one per candidate.
        threshold: the least reward; none below it is kept, so there may be none.
    """
    kept: list[int] = []
    for number in sorted(range(len(rewards)), key=lambda i: -rewards[i]):  # stable: of equal rewards the first drawn
        is_enough = threshold is None or rewards[number] >= threshold
        if is_enough and all(completions[number] != completions[other] for other in kept):
            kept.append(number)
    return kept[:top_k]


def best_and_worst(
    completions: Sequence[Text], rewards: Sequence[float], margin: float = 0.0
) -> tuple[int, int] | None:
    """Numbers of the best and the worst candidate, or `None` if their rewards differ by `margin` or less."""
    order = best_candidates(completions, rewards, top_k=len(rewards))
    best, worst = order[0], order[-1]
    return (best, worst) if rewards[best] - rewards[worst] > margin else None


def selected_rows(row: dict[str, Any], keep: str, top_k: int, threshold: float | None, margin: float) -> list[dict]:
    """Training data from a scored row, in TRL's formats.

    Args:
        row: `id`, `prompt`, `completions`, `rewards`.
        keep: `completions` (rows of `prompt`, `completion`, `reward`, for SFT) or `pairs` (rows of `prompt`, `chosen`,
            `rejected`, `reward_chosen`, `reward_rejected`, for DPO or reward training).
        top_k, threshold: as in `best_candidates`. margin: as in `best_and_worst`.
    """
    completions, rewards = row["completions"], row["rewards"]
    base = {"id": row["id"], "prompt": row["prompt"]}
    if keep == "completions":
        numbers = best_candidates(completions, rewards, top_k, threshold)
        return [{**base, "completion": _as_answer(row, i), "reward": rewards[i]} for i in numbers]
    pair = best_and_worst(completions, rewards, margin)
    if pair is None:
        return []
    sides = {"chosen": pair[0], "rejected": pair[1]}
    texts = {side: _as_answer(row, i) for side, i in sides.items()}
    return [{**base, **texts, **{f"reward_{side}": rewards[i] for side, i in sides.items()}}]


def _as_answer(row: dict[str, Any], number: int) -> Text:
    """A completion of the prompt's kind: after messages the assistant's message."""
    completion = row["completions"][number]
    if is_messages(row["prompt"]) and isinstance(completion, str):
        return [{"role": "assistant", "content": completion}]
    return completion
