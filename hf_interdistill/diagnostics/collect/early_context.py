"""Scores opposite answers under opposite instructions that are planted at the beginning and at the end of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from ..measures.early_context import EarlyContext, measure_early_context
from .planting import CONTRASTS, Contrast, as_answer, plant
from .records import IndexedRow
from .rereading import (
    EMPTY_PROMPT,
    CannotMeasureError,
    Rereading,
    asked,
    is_empty,
    prompt_key,
    read_prompted,
    split_records,
)

_REFUSED = "the chat template refuses the planted prompt"
_NO_USER = "no user turn with a text"
_SAME = "the chat template or the tokenizer hides the instruction"


def score_early_context(reading: Rereading) -> EarlyContext:
    """Plant an instruction in every distinct prompt, and compare the rewards of the answers.

    Raises:
        CannotMeasureError: there is no prompt to plant in. ValueError: a reward that is not finite.
    """
    total = sum(1 for _ in _first_of_prompts(reading))
    records = reading.collect(
        "early-context",
        _first_of_prompts(reading),
        total,
        _PlantedScorer(reading),
        "With an instruction",
        "prompt",
    )
    found, left_out = split_records(records)
    if not found:
        raise CannotMeasureError(
            f"There is no prompt to plant an instruction in: {total} distinct prompts, left out {left_out}. Give "
            "pairs with prompts of a user."
        )
    return measure_early_context(
        np.array([record["rewards"] for record in found]).reshape(-1, 2, 2, 2),
        np.array([record["distances"] for record in found]),
        [record["kind"] for record in found],
        reading.config,
        left_out,
    )


def _first_of_prompts(reading: Rereading) -> Iterator[IndexedRow]:
    """The first pair of each distinct prompt, with the instructions to plant; kinds take turns."""
    known: set[str] = set()
    for number, example in reading.rows():
        preference, _ = read_prompted(number, example)
        key = prompt_key(asked(preference, example))
        if key not in known:
            known.add(key)
            yield number, {"row": example, "contrast": CONTRASTS[(len(known) - 1) % len(CONTRASTS)]}


class _PlantedScorer:
    """Rewards of the eight texts of a prompt, as records: `id`, `kind` of instruction, `distances`, `rewards` (by
    place, instruction and answer), or `left_out`."""

    def __init__(self, reading: Rereading):
        self.reading = reading

    def __call__(self, examples: Sequence[IndexedRow]) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        read = []
        for number, example in examples:
            rows = self._encode(number, example["row"], example["contrast"])
            records.append({"id": number, "kind": example["contrast"].kind})
            if isinstance(rows, str):
                records[-1]["left_out"] = rows
                continue
            distances = [distance_to_answer(rows[start : start + 4]) for start in (0, 4)]
            if None in distances:
                records[-1]["left_out"] = _SAME
                continue
            records[-1]["distances"] = distances
            read.append((records[-1], rows))
        self.reading.score(read)
        return records

    def _encode(self, number: int, example: dict[str, Any], contrast: Contrast) -> list[list[int]] | str:
        """Tokens by place, instruction and answer; or why there are none."""
        preference, kwargs = read_prompted(number, example)
        asks = asked(preference, example)
        if is_empty(asks):
            return EMPTY_PROMPT
        role = "assistant" if isinstance(preference.chosen, str) else preference.chosen[-1]["role"]
        rows = []
        for is_first in (True, False):
            for instruction in contrast.instructions:
                prompt = plant(asks, instruction, is_first)
                if prompt is None:
                    return _NO_USER
                for answer in contrast.answers:
                    ids = self.reading.encode(prompt, as_answer(prompt, answer, role), kwargs)
                    if ids is None:
                        return _REFUSED
                    rows.append(ids)
        return rows


def distance_to_answer(rows: Sequence[Sequence[int]]) -> int | None:
    """Tokens between the last one in which the instructions differ and the first one in which the answers do.

    Args:
        rows: tokens of both answers under one instruction, then of both under the other one.

    Returns:
        the distance; `None` if instructions or answers do not differ.
    """
    one, other, opposite = rows[0], rows[1], rows[2]
    if list(one) == list(opposite) or list(one) == list(other):
        return None
    return _common(one, other) + _common(one[::-1], opposite[::-1]) - len(one)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens are the same at the beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
