"""Scores candidate completions by the diagnosed model and by what counts as the truth."""

from __future__ import annotations

import math
import os
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from ...scoring.formatting import is_messages, template_kwargs
from ...scoring.scorer import RewardScorer
from ...utils.context_length import context_length
from ...utils.privacy import public_name
from ..config import DiagnosisConfig
from ..measures.best_of_n import BestOfN, measure_best_of_n
from .candidates import candidate_rows, count_candidates
from .loading import fingerprint, name_of, scorer_beside
from .records import NumberedRow, Records, capped


def score_candidates(
    candidates,
    gold,
    scorer: RewardScorer,
    config: DiagnosisConfig,
    folder: str | None,
    *,
    name: str,
    chunk: int,
    is_progress_shown: bool,
) -> BestOfN:
    """Score every candidate, and measure what the model picks.

    Args:
        candidates: as `diagnose` takes them. gold: a reward model, a function `(prompts, completions) -> scores`, or
            `None` where the rows bring their scores.
        scorer, name: of the diagnosed model. config: the settings. folder: where records are kept.
        chunk: prompts between two writes.

    Raises:
        ValueError: a row that cannot be used; scores that are not finite; no prompt that can be read.
    """
    source = public_name(candidates) if isinstance(candidates, str | os.PathLike) else "rows"
    total = capped(count_candidates(candidates), config.limit)
    gold, gold_name, gold_print = _resolve_gold(gold, scorer, source)
    settings = {"data": source, "max_length": config.max_length}
    bar = {"unit": "prompt", "disable": not is_progress_shown}

    def rewards_by(judge, records: Records, description: str) -> dict[int, dict[str, Any]]:
        rows = islice(candidate_rows(candidates, is_scored=gold is None), config.limit)
        done = records.complete(rows, total, _Judge(judge, config), chunk=chunk, desc=description, **bar)
        return {record["id"]: record for record in done}

    own = {"model": name, "weights": fingerprint(scorer)}
    kept = Records(folder, name, "candidates", {**own, **settings})
    proxies = rewards_by(scorer, kept, f"Candidates by {name}")
    folder = None if gold is None else folder  # scores in the rows need no copy
    kept = Records(folder, gold_name, "gold", {"model": gold_name, "weights": gold_print, **settings})
    golds = rewards_by(gold, kept, f"Candidates by {gold_name}")
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
                f"Row {broken} of the candidates has a {kind} that is not finite: what gave it is broken."
            )
    rewards, truth = ([records[n]["scores"] for n in shared] for records in (proxies, golds))
    return measure_best_of_n(rewards, truth, config, gold_name=gold_name, left_out=left_out)


class _Judge:
    """Scores of candidates, as records: `id`, and `scores` or `left_out` (why).

    Args:
        judge: a scorer, a function, or `None` for the scores in the rows.
    """

    def __init__(self, judge: RewardScorer | Callable | None, config: DiagnosisConfig):
        self.judge = judge
        if isinstance(judge, RewardScorer):
            self.max_length = config.max_length or context_length(judge.model, judge.tokenizer)

    def __call__(self, examples: Sequence[NumberedRow]) -> list[dict[str, Any]]:
        if self.judge is None:
            return [{"id": number, "scores": [float(each) for each in row["gold"]]} for number, row in examples]
        if isinstance(self.judge, RewardScorer):
            return self._score_tokens(examples)
        prompts = [row["prompt"] for _, row in examples for _ in row["completions"]]
        completions = [completion for _, row in examples for completion in row["completions"]]
        found = list(self.judge(prompts, completions))
        if len(found) != len(completions):
            raise ValueError(
                f"`gold` gave {len(found)} scores of {len(completions)} completions; it must give as many."
            )
        scores = iter(found)
        return [
            {"id": number, "scores": [float(next(scores)) for _ in row["completions"]]} for number, row in examples
        ]

    def _score_tokens(self, examples: Sequence[NumberedRow]) -> list[dict[str, Any]]:
        texts = [self._encode(number, row) for number, row in examples]
        is_read = [self.max_length is None or max(map(len, rows)) <= self.max_length for rows in texts]
        rewards = iter(
            self.judge.score_ids(
                [ids for rows, is_short in zip(texts, is_read, strict=True) if is_short for ids in rows]
            )
        )
        return [
            {"id": number, "scores": [next(rewards) for _ in rows]}
            if is_short
            else {"id": number, "left_out": f"a candidate longer than {self.max_length} tokens"}
            for (number, _), rows, is_short in zip(examples, texts, is_read, strict=True)
        ]

    def _encode(self, number: int, row: dict[str, Any]) -> list[list[int]]:
        prompt = row["prompt"]
        kwargs = template_kwargs(row) if is_messages(prompt) else {}
        texts = []
        for completion in row["completions"]:
            if is_messages(prompt) and isinstance(completion, str):
                completion = [{"role": "assistant", "content": completion}]
            if isinstance(prompt, str) != isinstance(completion, str):
                raise ValueError(f"Row {number} of the candidates has a prompt of text and a completion of messages.")
            texts.append(self.judge.formatter.encode(prompt, completion, **kwargs))
        return texts


def _resolve_gold(gold, scorer: RewardScorer, source: str) -> tuple[RewardScorer | Callable | None, str, int]:
    """What gives the gold scores, its name, and a number that changes with it: of a function as far as its own code
    shows."""
    if gold is None:
        return None, source, 0
    if isinstance(gold, RewardScorer) or hasattr(gold, "config") or not callable(gold):
        judge = scorer_beside(gold, scorer)
        return judge, name_of(gold, judge), fingerprint(judge)
    shown, code = getattr(gold, "__name__", type(gold).__name__), getattr(gold, "__code__", None)
    return gold, shown, 0 if code is None else zlib.crc32(repr(_code_parts(code)).encode())


def _code_parts(code) -> tuple:
    """What a function does, nested ones with it, but not where it stands."""
    constants = [_code_parts(each) if hasattr(each, "co_code") else each for each in code.co_consts]
    return code.co_code, code.co_names, constants
