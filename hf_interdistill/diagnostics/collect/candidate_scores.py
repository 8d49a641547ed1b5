"""Scores candidate completions with the diagnosed model and with the gold scorer."""

from __future__ import annotations

import math
import os
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from ...scoring.formatting import is_messages, normal_text, template_kwargs
from ...scoring.opening import LocalScorer
from ...utils.privacy import public_name
from ..config import DiagnosisConfig
from ..measures.best_of_n import BestOfN, measure_best_of_n
from .candidates import candidate_rows, count_candidates
from .loading import fingerprint, name_of, scorer_beside
from .records import IndexedRow, RecordStore, smaller


def score_candidates(
    candidates,
    gold,
    scorer: LocalScorer,
    config: DiagnosisConfig,
    store: RecordStore,
) -> BestOfN:
    """Score every candidate, and measure what the model picks.

    Args:
        candidates: as `diagnose` takes them. gold: a reward model, a function `(prompts, completions) -> scores`, or
            `None` where the rows have scores.
        scorer: of the diagnosed model. config: the settings. store: where records are kept.

    Raises:
        ValueError: a row that cannot be used; scores that are not finite; no prompt that can be read.
    """
    source = public_name(candidates) if isinstance(candidates, str | os.PathLike) else "rows"
    total = smaller(count_candidates(candidates), config.limit)
    gold, gold_name, gold_fingerprint = _resolve_gold(gold, scorer, source)

    def scores_by(each, file: tuple[str, str], weights: int, store: RecordStore) -> dict[int, dict[str, Any]]:
        settings = {"model": file[0], "weights": weights, "data": source, "max_length": config.max_length}
        rows = islice(candidate_rows(candidates, is_scored=gold is None), config.limit)
        measure, description = _CandidateScorer(each, config), f"Candidates by {file[0]}"
        records = store.collect(file, settings, (rows, total), measure, desc=description, unit="prompt")
        return {record["id"]: record for record in records}

    proxies = scores_by(scorer, (store.name, "candidates"), fingerprint(scorer), store)
    gold_store = replace(store, folder=None) if gold is None else store  # scores in the rows need no copy
    golds = scores_by(gold, (gold_name, "gold"), gold_fingerprint, gold_store)
    return _measure(proxies, golds, gold_name, config)


def _measure(proxies: dict[int, dict], golds: dict[int, dict], gold_name: str, config: DiagnosisConfig) -> BestOfN:
    reasons = {n: each.get("left_out") or golds[n].get("left_out") for n, each in proxies.items()}
    shared = [number for number, reason in reasons.items() if reason is None]
    left_out = dict(Counter(reason for reason in reasons.values() if reason is not None))
    if not shared:
        raise ValueError(f"There is no prompt with candidates to look at: {len(reasons)} rows, left out {left_out}.")
    for kind, records in (("reward", proxies), ("gold score", golds)):
        broken = next((n for n in shared if not all(map(math.isfinite, records[n]["scores"]))), None)
        if broken is not None:
            raise ValueError(
                f"Row {broken} of the candidates has a {kind} that is not finite, so its source is broken."
            )
    rewards, truth = ([records[n]["scores"] for n in shared] for records in (proxies, golds))
    return measure_best_of_n(rewards, truth, config, gold_name=gold_name, left_out=left_out)


class _CandidateScorer:
    """Scores of candidates, as records: `id`, and `scores` or `left_out` (why).

    Args:
        source: a reward model, a function, or `None` for the scores in the rows.
    """

    def __init__(self, source: LocalScorer | Callable | None, config: DiagnosisConfig):
        self.source = source
        if isinstance(source, LocalScorer):
            self.max_length = config.max_length or source.context_length

    def __call__(self, examples: Sequence[IndexedRow]) -> list[dict[str, Any]]:
        if self.source is None:
            return [{"id": number, "scores": [float(each) for each in row["gold"]]} for number, row in examples]
        if isinstance(self.source, LocalScorer):
            return self._score_tokens(self.source, examples)
        prompts = [row["prompt"] for _, row in examples for _ in row["completions"]]
        completions = [completion for _, row in examples for completion in row["completions"]]
        found = list(self.source(prompts, completions))
        if len(found) != len(completions):
            raise ValueError(
                f"`gold` gave {len(found)} scores of {len(completions)} completions; it must give one for each."
            )
        scores = iter(found)
        return [
            {"id": number, "scores": [float(next(scores)) for _ in row["completions"]]} for number, row in examples
        ]

    def _score_tokens(self, scorer: LocalScorer, examples: Sequence[IndexedRow]) -> list[dict[str, Any]]:
        texts = [_encode(scorer, number, row) for number, row in examples]
        is_read = [self.max_length is None or max(map(len, rows)) <= self.max_length for rows in texts]
        rewards = iter(
            scorer.score_ids([ids for rows, is_short in zip(texts, is_read, strict=True) if is_short for ids in rows])
        )
        return [
            {"id": number, "scores": [next(rewards) for _ in rows]}
            if is_short
            else {"id": number, "left_out": f"a candidate longer than {self.max_length} tokens"}
            for (number, _), rows, is_short in zip(examples, texts, is_read, strict=True)
        ]


def _encode(scorer: LocalScorer, number: int, row: dict[str, Any]) -> list[list[int]]:
    prompt = normal_text(row["prompt"])
    kwargs = template_kwargs(row) if is_messages(prompt) else {}
    texts = []
    for completion in map(normal_text, row["completions"]):
        if is_messages(prompt) and isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        if isinstance(prompt, str) != isinstance(completion, str):
            raise ValueError(f"Row {number} of the candidates has a prompt of text and a completion of messages.")
        texts.append(scorer.formatter.encode(prompt, completion, **kwargs))
    return texts


def _resolve_gold(gold, scorer: LocalScorer, source: str) -> tuple[LocalScorer | Callable | None, str, int]:
    """The source of gold scores, its name, and a fingerprint; of a function, the fingerprint covers its own code
    alone."""
    if gold is None:
        return None, source, 0
    if isinstance(gold, LocalScorer) or hasattr(gold, "config") or not callable(gold):
        other = scorer_beside(gold, scorer)
        return other, name_of(gold, other), fingerprint(other)
    shown, code = getattr(gold, "__name__", type(gold).__name__), getattr(gold, "__code__", None)
    return gold, shown, 0 if code is None else zlib.crc32(repr(_code_parts(code)).encode())


def _code_parts(code) -> tuple:
    """The code of a function and of nested ones, without its location."""
    constants = [_code_parts(each) if hasattr(each, "co_code") else each for each in code.co_consts]
    return code.co_code, code.co_names, constants
