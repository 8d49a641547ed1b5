"""Whether a benchmark's own texts have the same rewards alone and in batches, of a sample of them, in each run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..scoring.batching import PaddingError, tolerance
from ..scoring.scorer import RewardScorer
from ..scoring.text_scorer import TextScorer
from ..utils.jsonl_jobs import JsonlJob
from ..utils.wording import FLAG, INCONCLUSIVE, PASS
from .items import Item
from .running import encode_item, require_finite, row_key

_TEXTS = 32


@dataclass(frozen=True)
class BatchCheck:
    """How far the rewards of texts in batches are from those of the same texts alone.

    Args:
        texts: how many were scored both ways.
        largest: largest difference of a reward. relative: the same as a share of the largest reward.
        choices: comparisons that the benchmark makes of these texts. changed: of them, those that come out otherwise.
        tolerance: largest relative difference that is allowed. batch_size: of the run.
    """

    texts: int
    largest: float
    relative: float
    choices: int
    changed: int
    tolerance: float
    batch_size: int

    @property
    def verdict(self) -> str:
        """`flag`: a choice depends on the batch; `pass`: none does, of one or more; `inconclusive`: there is none."""
        if self.changed:
            return FLAG
        return PASS if self.choices else INCONCLUSIVE

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "verdict": self.verdict}


def check_batches(
    scorer: TextScorer,
    items: Sequence[Item],
    *,
    job: JsonlJob | None = None,
    model_key: str = "",
    is_truncating: bool = False,
    allowed: float | None = None,
) -> BatchCheck | None:
    """Score a sample of items alone and in batches.

    Args:
        scorer: the model, with the batch size of the run. items: of a benchmark.
        job: where measurements are kept, so that they are made once. model_key: what the rewards depend on.
        is_truncating: keep the last `max_length` tokens of longer texts.
        allowed: largest difference, as a share of the largest reward; by default what rounding explains.

    Returns:
        The check; `None` with `batch_size=1`, where each text is scored alone anyway, and for a model on a server,
        which batches the texts of all that ask it.

    Raises:
        ValueError: a larger difference, a text that cannot be scored, a reward that is not finite.
    """
    if scorer.batch_size == 1 or not isinstance(scorer, RewardScorer):
        return None
    sample = sampled(items)
    content = "".join(map(row_key, sample)).encode()
    key = f"{model_key} {scorer.batch_size} {hashlib.blake2b(content, digest_size=8).hexdigest()}"
    job = job or JsonlJob(None)
    kept = {row["key"]: row["measured"] for row in job.rows()}
    measured = kept[key] if key in kept else _measure(scorer, sample, is_truncating)
    limit = tolerance(scorer.model) if allowed is None else allowed
    check = BatchCheck(**measured, tolerance=limit, batch_size=scorer.batch_size)
    if check.relative > limit:
        raise ValueError(
            f"{scorer.__name__}: rewards of {check.texts} texts alone and in batches of {check.batch_size} differ by "
            f"up to {check.largest:.3g}, {check.relative:.3g} of the largest reward; {limit:.3g} is allowed. "
            f"{check.changed} of {check.choices} choices change. Use `batch_size` 1, or `dtype` float32; or allow "
            "more by `batch_tolerance`."
        )
    if key not in kept:  # of what is refused nothing is kept: the next run measures it again
        with job.appending() as append:
            append({"key": key, "measured": measured})
    return check


def sampled(items: Sequence[Item], texts: int = _TEXTS) -> list[Item]:
    """The items of the longest and the shortest answer, and others at even distances, of about so many answers."""
    lengths = [[len(text) for text in item.candidates] for item in items]
    first = [
        max(range(len(items)), key=lambda i: max(lengths[i])),
        min(range(len(items)), key=lambda i: min(lengths[i])),
    ]
    spread = [int(i) for i in np.linspace(0, len(items) - 1, min(len(items), texts))]
    chosen: list[int] = []
    count = 0
    for number in dict.fromkeys([*first, *spread]):
        if len(chosen) >= len(set(first)) and count + len(lengths[number]) > texts:
            continue
        chosen.append(number)
        count += len(lengths[number])
    return [items[number] for number in sorted(chosen)]


def _measure(scorer: RewardScorer, items: Sequence[Item], is_truncating: bool) -> dict[str, Any]:
    rows = [encode_item(scorer, item, is_truncating)[0] for item in items]
    bar = tqdm(rows, desc=f"{scorer.__name__}, a sample alone and in batches")
    alone = [[scorer.score_ids([row])[0] for row in of_item] for of_item in bar]
    for item, rewards in zip(items, alone, strict=True):
        require_finite(item, rewards)
    flat = iter(scorer.score_ids([row for of_item in rows for row in of_item]))
    together = [[next(flat) for _ in of_item] for of_item in rows]
    choices = [
        [np.sign(rewards[number][right] - rewards[number][wrong]) for rewards in (alone, together)]
        for number, item in enumerate(items)
        for right, wrong in item.pairs
    ]
    one, other = (torch.tensor([value for values in each for value in values]) for each in (alone, together))
    return {
        "texts": len(one),
        "largest": float((one - other).abs().max().nan_to_num(nan=float("inf"))),
        "relative": PaddingError(scorer.padding_side, one, other).relative,
        "choices": len(choices),
        "changed": sum(bool(before != after) for before, after in choices),
    }
