"""Rewards of the rows and benchmarks that are scored, kept for each run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from ..interaction.teacher.teacher import InteractionTeacher
from ..reward_benchmarks.items import Benchmark, Item, judged_together
from ..reward_benchmarks.running import BenchmarkRun, run_benchmark
from ..scoring.formatting import template_kwargs
from ..scoring.model_digests import digest_of_model
from ..scoring.scorer import RewardScorer
from ..utils.context_length import context_length
from ..utils.jsonl_jobs import JsonlJob


@dataclass(frozen=True)
class Rewards:
    """The rewards of the rows from one model.

    Args:
        pairs: chosen and rejected, `(rows, 2)`; NaN for rows that were left out. left_out: why, by number of the row.
    """

    pairs: np.ndarray
    left_out: dict[int, str]

    @property
    def margins(self) -> np.ndarray:
        return self.pairs[:, 0] - self.pairs[:, 1]


def score_rows(scorer: RewardScorer, rows: Sequence[dict[str, Any]], folder: Path, digest: str) -> Rewards:
    """Rewards of all rows; those already in the folder are not computed again.

    Args:
        scorer: of the run in the folder. rows: preferences. digest: of the rows.

    Raises:
        ValueError: a reward that is not finite, or a row that cannot be scored.
    """
    with JsonlJob(folder / f"scores-{digest}.jsonl") as job:
        job.open({"weights": digest_of_model(str(folder))})
        job.complete(
            enumerate(rows), partial(_score, scorer), chunk_size=8 * scorer.batch_size, total=len(rows), desc="Scoring"
        )
    records = list(job.rows())
    pairs = np.array([record.get("rewards", (np.nan, np.nan)) for record in records], dtype=float)
    return Rewards(pairs, {record["id"]: record["left_out"] for record in records if "left_out" in record})


def _score(scorer: RewardScorer, rows: Sequence[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    limit = context_length(scorer.model, scorer.tokenizer)
    records: list[dict[str, Any]] = []
    texts = []
    for number, row in rows:
        try:
            kwargs = template_kwargs(row)
            both = [scorer.encode(row.get("prompt"), row[side], kwargs) for side in ("chosen", "rejected")]
        except ValueError as error:
            raise ValueError(f"Row {number} of the rows to score: {error}") from None
        records.append({"id": number})
        if limit is not None and max(map(len, both)) > limit:
            records[-1]["left_out"] = f"longer than the {limit} tokens that a model reads"
        else:
            texts += both
    rewards = iter(scorer.score_ids(texts))
    for record in records:
        if "left_out" in record:
            continue
        record["rewards"] = [next(rewards), next(rewards)]
        if not all(map(isfinite, record["rewards"])):
            raise ValueError(
                f"Row {record['id']} of the rows to score has the rewards {record['rewards']}: the model is broken. "
                "Train it again with a lower `learning_rate`."
            )
    return records


def teacher_margins(name: str, rows: Sequence[dict[str, Any]], batch_size: int, device: str) -> np.ndarray:
    """Margins of a teacher, the mean of both reading orders, `(rows,)`."""
    teacher = InteractionTeacher.from_pretrained(name).to(device)
    return teacher.score_pairs(rows, batch_size=batch_size).mean(1).double().numpy()


def score_benchmark(
    scorer: RewardScorer, benchmark: Benchmark, items: Sequence[Item], folder: Path
) -> tuple[BenchmarkRun, np.ndarray]:
    """A model on a benchmark: the result as its authors count it, and the score of each item, `(groups,)`.

    A row without a pair of a right and a wrong answer, as PPE has them, has no score of its own.
    """
    with JsonlJob(folder / "benchmarks.jsonl") as job:
        job.open()
        run = run_benchmark(scorer, benchmark, items, job=job, model_key=digest_of_model(str(folder)))
    scores = [
        benchmark.aggregate([items[i] for i in group], [run.rewards[i] for i in group]).total
        for group in judged_together(items)
        if any(items[i].pairs for i in group)
    ]
    return run, np.clip(scores, 0, 1)
