"""The rows of the study: what is trained on, under which condition, and what is tested on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hf_interdistill.diagnostics.collect.contents import with_cue
from hf_interdistill.interaction.data.pairs import read_preference
from hf_interdistill.interaction.teacher.training import split_by_prompt
from hf_interdistill.scoring.formatting import RewardFormatter

Row = dict[str, list[dict[str, str]]]
_NOISE = re.compile(r"noise(\d+)")


def read_rows(path: Path) -> list[Row]:
    """Prompt, chosen and rejected of each line of a JSONL file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in map(json.loads, lines)]


def training_and_validation(data: Path, train: str, pairs: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on and `pairs` (or a few more) rows to choose hyper-parameters on; they share no prompt.

    Args:
        train: a folder of `data`, or `mix`: half the rows of each of the two sources.
    """
    if train == "mix":
        halves = [training_and_validation(data, name, pairs // 2, seed) for name in ("hh_harmless", "truthfulqa")]
        draw = np.random.default_rng(seed)
        rows = [row for half, _ in halves for row in _drawn(half, len(half) // 2, draw)]
        return _drawn(rows, len(rows), draw), [row for _, half in halves for row in half]
    rows = read_rows(data / train / "train.jsonl")
    training, validation = split_by_prompt([read_preference(row) for row in rows], pairs / len(rows), seed)
    return [rows[i] for i in training], [rows[i] for i in validation]


def test_rows(data: Path, name: str, pairs: int, shortener: Shortener, seed: int) -> list[Row]:
    """`pairs` test rows of a set, drawn from those that need no shortening if there are enough of them.

    A set that has no more rows than `pairs` is taken whole.
    """
    rows = read_rows(data / name / "test.jsonl")
    if len(rows) > pairs:
        whole = [row for row in rows if shortener(row) == row]
        rows = _drawn(whole if len(whole) >= pairs else rows, pairs, np.random.default_rng(seed))
    return [shortener(row) for row in rows]


def _drawn(rows: Sequence[Row], count: int, draw: np.random.Generator) -> list[Row]:
    return [rows[i] for i in draw.permutation(len(rows))[:count]]


class Shortener:
    """Shortens pairs so that both texts fit: responses lose their end, then the prompt its oldest part.

    Args:
        formatter: of the student. longest: tokens of a whole text. longest_response: tokens of a response.
    """

    def __init__(self, formatter: RewardFormatter, longest: int, longest_response: int):
        self.formatter, self.longest, self.longest_response = formatter, longest, longest_response

    def __call__(self, row: Row) -> Row:
        chosen, rejected = (self._shorter_response(row[side]) for side in ("chosen", "rejected"))
        prompt = row["prompt"]
        while excess := self._excess(prompt, chosen, rejected):
            if not prompt:
                raise ValueError(
                    f"A response with no prompt is {excess} tokens longer than {self.longest}: lower "
                    f"`longest_response` ({self.longest_response}) or raise `max_length`."
                )
            prompt = self._without_oldest(prompt, excess)
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    def _excess(self, prompt, chosen, rejected) -> int:
        longest = max(len(self.formatter.encode(prompt, response)) for response in (chosen, rejected))
        return max(0, longest - self.longest)

    def _ends(self, text: str) -> list[int]:
        """Where each token of a text ends."""
        tokenizer = self.formatter.tokenizer
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [end for _, end in encoded["offset_mapping"]]

    def _shorter_response(self, response: list[dict]) -> list[dict]:
        text = response[-1]["content"]
        ends = self._ends(text)
        if len(ends) <= self.longest_response:
            return response
        return [*response[:-1], {**response[-1], "content": text[: ends[self.longest_response - 1]]}]

    def _without_oldest(self, prompt: list[dict], tokens: int) -> list[dict]:
        text = prompt[0]["content"]
        ends = self._ends(text)
        if len(ends) <= tokens:
            return prompt[1:]
        return [{**prompt[0], "content": text[ends[tokens - 1] :].lstrip()}, *prompt[1:]]


def under_condition(rows: Sequence[Row], condition: str, cue: dict, seed: int) -> list[Row]:
    """Training rows under a condition.

    Args:
        condition: `clean`; `cue`, each pair has the phrase at the end of one response, which is the chosen one in
            `cue["share"]` of the pairs; `noiseN`, N % of the pairs have their labels flipped.
        seed: of which pairs; the same for all arms and runs, so that the teacher sees the very rows of the student.

    Raises:
        ValueError: another condition.
    """
    noise = _NOISE.fullmatch(condition)
    if condition == "clean":
        return list(rows)
    if condition == "cue":
        return plant_cue(rows, cue["phrase"], picked(len(rows), cue["share"], seed))
    if noise and int(noise[1]) < 50:
        flipped = picked(len(rows), int(noise[1]) / 100, seed)
        return [
            {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if is_flipped else row
            for row, is_flipped in zip(rows, flipped, strict=True)
        ]
    raise ValueError(f"The condition is {condition!r}, but must be `clean`, `cue` or `noiseN` with N below 50.")


def picked(count: int, share: float, seed: int) -> np.ndarray:
    """`(count,)` booleans of which exactly `round(share * count)` are true."""
    return np.random.default_rng(seed).permutation(count) < round(share * count)


def plant_cue(rows: Sequence[Row], phrase: str, is_on_chosen: np.ndarray) -> list[Row]:
    """Each row with the phrase at the end of its chosen response, or else of its rejected one."""
    sides = np.where(is_on_chosen, "chosen", "rejected")
    return [{**row, str(side): with_cue(row[str(side)], phrase)} for row, side in zip(rows, sides, strict=True)]
