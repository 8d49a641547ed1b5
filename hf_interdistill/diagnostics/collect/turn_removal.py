"""Scores pairs without single turns of their conversation, and without as many tokens somewhere in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..measures.turn_removal import PLACES, TurnRemoval, measure_turn_removal
from .contents import TokenRow, token_row
from .records import IndexedRow
from .rereading import CannotMeasureError, Rereading, read_prompted, split_records

_TEXT, _ONE_TURN = "plain text, which has no turns", "a prompt of one turn"
_FRAMES = ("system", "developer")  # roles of messages that are not turns


def score_turn_removal(reading: Rereading) -> TurnRemoval:
    """Remove single turns from every prompt of two or more, and measure how far the margin moves.

    Raises:
        CannotMeasureError: there is no such prompt. ValueError: a reward that is not finite.
    """
    own = reading.rewards()
    records = reading.collect(
        "turn-removal", reading.rows(), len(own), _TurnScorer(reading), "Without single turns", "pair"
    )
    found, left_out = split_records(records)
    if not found:
        raise CannotMeasureError(
            f"There is no prompt of two or more messages, so there is no earlier turn to remove: {len(own)} pairs, "
            f"left out {left_out}. Give conversations as messages."
        )
    columns = np.full((3, len(found), len(PLACES)), np.nan)  # without turns, without as many tokens, tokens
    for number, record in enumerate(found):
        rewards = np.array(record["rewards"]).reshape(-1, 2, 2)  # place, turn or control, answer
        for place, (without, control), count in zip(record["places"], rewards, record["tokens"], strict=True):
            columns[:, number, PLACES.index(place)] = without[0] - without[1], control[0] - control[1], count
    margins = np.array([own[record["id"]][0] - own[record["id"]][1] for record in found])
    removed, controls, tokens = columns
    return measure_turn_removal(margins, removed, controls, tokens, config=reading.config, left_out=left_out)


class _TurnScorer:
    """Rewards of pairs without turns, as records: `id`, `places` of the removed turns, their `tokens`, and `rewards`
    (for each place chosen and rejected without the turn, and both without as many tokens), or `left_out`."""

    def __init__(self, reading: Rereading):
        self.reading = reading

    def __call__(self, examples: Sequence[IndexedRow]) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        read, kept = [], []
        for number, example in examples:
            records.append({"id": number})
            preference, kwargs = read_prompted(number, example)
            if isinstance(preference.prompt, str):
                records[-1]["left_out"] = _TEXT
                continue
            formatter = self.reading.scorer.formatter
            sides = (preference.chosen, preference.rejected)
            rows = [token_row(formatter, preference.prompt, side, kwargs) for side in sides]
            places = turns_to_remove(rows[0], [message["role"] for message in preference.prompt])
            if not places:
                records[-1]["left_out"] = _ONE_TURN
                continue
            records[-1] |= {"places": list(places), "tokens": [len(rows[0].messages[n]) for n in places.values()]}
            changed = [
                row.without(_stretch(row, message, number) if is_control else row.messages[message])
                for message in places.values()
                for is_control in (False, True)
                for row in rows
            ]
            read.append((records[-1], [ids for ids, _ in changed]))
            kept.append([positions for _, positions in changed])
        self.reading.score(read, kept)
        return records


def turns_to_remove(row: TokenRow, roles: Sequence[str]) -> dict[str, int]:
    """The messages of a prompt to remove, by place (see `PLACES`): the first and the last turn, and from three turns
    on the middle one; none if there is one turn. Turns are messages with content that are not system prompts."""
    turns = [n for n, role in enumerate(roles) if role not in _FRAMES and row.messages[n]]
    if len(turns) < 2:
        return {}
    middle = {"middle": turns[len(turns) // 2]} if len(turns) > 2 else {}
    return {"first": turns[0], **middle, "last": turns[-1]}


def _stretch(row: TokenRow, message: int, number: int) -> list[int]:
    """As many consecutive positions as a message has, from a random place in the content of the prompt, drawn for the
    pair of this number."""
    count = len(row.messages[message])
    start = int(np.random.default_rng((number, message)).integers(len(row.prompt) - count + 1))
    return row.prompt[start : start + count]
