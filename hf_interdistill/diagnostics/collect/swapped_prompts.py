"""Scores the answers of pairs under the prompts of other pairs."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...interaction.data.pairs import Preference
from ...scoring.formatting import Text
from ..measures.swapped_prompt import SwappedPrompt, measure_swapped_prompt
from .records import IndexedRow
from .rereading import (
    EMPTY_PROMPT,
    CannotMeasureError,
    Rereading,
    asked,
    is_empty,
    prompt_key,
    prompt_texts,
    read_prompted,
    split_records,
)

_BLOCK = 2  # prompts that are swapped
_ALONE = "no other prompt of its kind"
_REFUSED = "the chat template refuses the other prompt"


@dataclass(frozen=True)
class _Prompt:
    """A prompt: what is read, the arguments of the chat template that go with it, and how many tokens it has."""

    text: Text
    kwargs: dict[str, Any]
    tokens: int


def score_swapped_prompts(reading: Rereading) -> SwappedPrompt:
    """Give every answer the prompt of another pair, and compare rewards.

    Raises:
        CannotMeasureError: there are too few distinct prompts. ValueError: a reward that is not finite.
    """
    prompts, groups, numbers = _distinct_prompts(reading)
    partners = swap_partners([each.tokens for each in prompts], groups, reading.config.seed)
    if all(partner is None for partner in partners):
        raise CannotMeasureError(
            f"The {len(reading.rewards())} pairs have {len(prompts)} distinct prompts that are not empty, and no two "
            "of one kind, so there is none to swap with. Give pairs with two different prompts or more."
        )
    scorer = _SwappedScorer(reading, prompts, partners, numbers)
    given = sorted((number, partners[prompt]) for number, prompt in numbers.items())
    kind = f"swapped-prompt-{zlib.crc32(repr(given).encode()):08x}"  # other pairs have other partners
    total = len(reading.rewards())
    records = reading.collect(kind, reading.rows(), total, scorer, "With another prompt", "pair")
    found, left_out = split_records(records)
    if not found:
        raise CannotMeasureError(f"No pair can be read under another prompt: {left_out}.")
    own = reading.rewards()
    swapped = [numbers[record["id"]] for record in found]
    return measure_swapped_prompt(
        np.array([[own[record["id"]], record["rewards"]] for record in found]),
        np.array(swapped),
        np.array([_first_of_swap(partners, prompt) for prompt in swapped]),
        np.array([record["tokens_apart"] for record in found], dtype=float),
        reading.config,
        left_out,
    )


def swap_partners(lengths: Sequence[int], groups: Sequence[Hashable], seed: int) -> list[int | None]:
    """Which prompt each distinct prompt is swapped with: within a group, in the order of their lengths, neighbors
    change places two by two, and the last three in a circle if their number is odd.

    Args:
        lengths: tokens of each prompt. groups: only prompts of one group are swapped.
        seed: of the order among prompts of one length.

    Returns:
        for each prompt the number of another one; `None` for one that is alone in its group.
    """
    ranks = np.random.default_rng(seed).permutation(len(lengths))
    partners: list[int | None] = [None] * len(lengths)
    for group in dict.fromkeys(groups):
        members = [number for number, each in enumerate(groups) if each == group]
        order = sorted(members, key=lambda number: (lengths[number], ranks[number]))
        start = 0
        while len(order) - start >= _BLOCK:
            block = order[start:] if len(order) - start == _BLOCK + 1 else order[start : start + _BLOCK]
            for number, other in zip(block, [*block[1:], block[0]], strict=True):
                partners[number] = other
            start += len(block)
    return partners


def _first_of_swap(partners: Sequence[int | None], prompt: int) -> int:
    """The lowest number among the prompts that changed places with this one."""
    lowest, other = prompt, partners[prompt]
    while other is not None and other != prompt:
        lowest, other = min(lowest, other), partners[other]
    return lowest


def _distinct_prompts(reading: Rereading) -> tuple[list[_Prompt], list[Hashable], dict[int, int]]:
    """The distinct prompts that are not empty, the group of each, and which one each pair has, by its number."""
    known: dict[str, int] = {}
    prompts: list[_Prompt] = []
    groups: list[Hashable] = []
    numbers: dict[int, int] = {}
    for number, example in reading.rows():
        preference, kwargs = read_prompted(number, example)
        asks = asked(preference, example)
        if is_empty(asks):
            continue
        key = prompt_key(asks)
        if key not in known:
            known[key] = len(prompts)
            tokens = sum(
                len(reading.scorer.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
                for text in prompt_texts(asks)
            )
            prompts.append(_Prompt(asks, kwargs, tokens))
            groups.append(_group(preference))
        numbers[number] = known[key]
    return prompts, groups, numbers


def _group(preference: Preference) -> Hashable:
    """Prompts after which the same answers may come: all texts; messages that end with the same role, and are followed
    by the same ones."""
    if isinstance(preference.prompt, str):
        return "text"
    sides: Any = (preference.prompt[-1:], preference.chosen[:1], preference.rejected[:1])
    return tuple(message["role"] for side in sides for message in side)


class _SwappedScorer:
    """Rewards of both answers under another prompt, as records: `id`, `tokens_apart`, `rewards`, or `left_out`."""

    def __init__(
        self, reading: Rereading, prompts: Sequence[_Prompt], partners: Sequence[int | None], numbers: dict[int, int]
    ):
        self.reading, self.prompts, self.partners, self.numbers = reading, prompts, partners, numbers

    def __call__(self, examples: Sequence[IndexedRow]) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        read = []
        for number, example in examples:
            record: dict[str, Any] = {"id": number}
            records.append(record)
            own = self.numbers.get(number)
            other = None if own is None else self.partners[own]
            if own is None or other is None:
                record["left_out"] = EMPTY_PROMPT if own is None else _ALONE
                continue
            prompt, (preference, _) = self.prompts[other], read_prompted(number, example)
            begun: Any = preference.prompt[len(asked(preference, example)) :]
            sides = (begun + preference.chosen, begun + preference.rejected)
            texts = [self.reading.encode(prompt.text, side, prompt.kwargs) for side in sides]
            rows = [ids for ids in texts if ids is not None]
            if len(rows) < len(texts):
                record["left_out"] = _REFUSED
                continue
            record["tokens_apart"] = abs(self.prompts[own].tokens - prompt.tokens)
            read.append((record, rows))
        self.reading.score(read)
        return records
