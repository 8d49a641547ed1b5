"""Rows of a best-of-n job: with candidates, with scores, or with an error."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..scoring.prompts import TEMPLATE_COLUMNS
from ..utils.jsonl_jobs import error_field
from ..utils.servers import ServerError, is_of_one_request
from .candidates import Candidate

Scorer = Callable[..., list[float]]


def with_candidates(row: dict, candidates: Sequence[Candidate]) -> dict:
    """A row with the candidates that were sampled for it."""
    reasons = [candidate.finish_reason for candidate in candidates]
    return {**row, "completions": [candidate.text for candidate in candidates], "finish_reasons": reasons}


def scored(rows: list[dict], scorers: Mapping[str, Scorer]) -> list[dict]:
    """Rows with scores; one that cannot be scored gets an error, whatever it is, and the others are scored."""
    try:
        return _with_scores(rows, scorers)
    except Exception as error:
        if isinstance(error, ServerError) and not is_of_one_request(error):
            raise  # that is the fault of no row
        if len(rows) == 1:
            return [with_error(rows[0], error)]
        return [each for row in rows for each in scored([row], scorers)]


def with_error(row: dict, error: Exception) -> dict:
    """A row that says why there is no result. What the scorer calls rows are the candidates of this one."""
    message = re.sub(r"^Row (\d+): ", r"Candidate \1: ", str(error))
    return {**row, **error_field(f"{type(error).__name__}: {message}")}


def _with_scores(rows: list[dict], scorers: Mapping[str, Scorer]) -> list[dict]:
    prompts = [row["prompt"] for row in rows for _ in row["completions"]]
    completions = [completion for row in rows for completion in row["completions"]]
    columns: dict[str, Any] = {
        key: [row.get(key) for row in rows for _ in row["completions"]] for key in TEMPLATE_COLUMNS
    }
    values = {key: scorer(prompts, completions, **columns) for key, scorer in scorers.items()}
    for key, each in values.items():
        if not all(map(math.isfinite, each)):
            raise ValueError(f"`{key}` are {each}: a broken model, or one that needs another dtype.")
    scores = {key: iter(each) for key, each in values.items()}
    return [{**row, **{key: [next(own) for _ in row["completions"]] for key, own in scores.items()}} for row in rows]
