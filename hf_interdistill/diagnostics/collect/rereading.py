"""Reading the pairs of a diagnosis once more, for measures that need other texts than those of a single pair."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError

from ...interaction.data.pairs import Preference, read_preference
from ...scoring.formatting import Text, message_texts, template_kwargs
from ...scoring.normal_form import is_missing
from ...scoring.opening import LocalScorer
from ..config import DiagnosisConfig
from .loading import fingerprint
from .records import IndexedRow, PairData, RecordStore

Rows = Sequence[Sequence[int]]
EMPTY_PROMPT = "empty prompt"


class CannotMeasureError(Exception):
    """The data do not allow a measure; the message says why and what to do."""


@dataclass(frozen=True)
class Rereading:
    """What a measure of the context needs: the model, the pairs, and their records.

    Args:
        scorer: the reward model. pairs: the data. records: of the pairs, as `PairMeasurer` makes them.
        config: the settings. store: where records are kept.
    """

    scorer: LocalScorer
    pairs: PairData
    records: Sequence[dict[str, Any]]
    config: DiagnosisConfig
    store: RecordStore

    @property
    def max_length(self) -> int | None:
        return self.config.max_length or self.scorer.context_length

    def rewards(self) -> dict[int, list[float]]:
        """Rewards of the whole texts of each measured pair, chosen and rejected, by its number."""
        return {record["id"]: record["rewards"]["full"] for record in self.records if "rewards" in record}

    def rows(self) -> Iterator[IndexedRow]:
        """The measured pairs, with their numbers."""
        measured = self.rewards()
        rows, _ = self.pairs.rows(len(self.records))
        return ((number, example) for number, example in rows if number in measured)

    def collect(self, kind: str, rows: Iterable[IndexedRow], total: int, measure, description: str, unit: str):
        """The records of some of the rows, kept as `NAME.KIND.jsonl`."""
        settings = {"model": self.store.name, "weights": fingerprint(self.scorer), "data": self.pairs.name}
        settings |= {"split": self.pairs.split, "max_length": self.config.max_length}
        file = (self.store.name, kind)
        return self.store.collect(file, settings, (iter(rows), total), measure, desc=description, unit=unit)

    def encode(self, prompt: Text, completion: Text, kwargs: dict[str, Any]) -> list[int] | None:
        """Tokens of a text that is not in the data; `None` if the chat template refuses it."""
        try:
            return self.scorer.formatter.encode(prompt, completion, **kwargs)
        except ValueError as error:
            if isinstance(error.__cause__, TemplateError):
                return None
            raise

    def score(self, records: Sequence[tuple[dict[str, Any], Rows]], positions: Sequence[Rows] | None = None) -> None:
        """Put `rewards` in records, or `left_out` where one of the texts is too long.

        Args:
            records: each with the tokens of its texts. positions: of these tokens, if not consecutive.
        """
        limit = self.max_length
        is_read = [limit is None or max(map(len, rows)) <= limit for _, rows in records]
        ids = [row for (_, rows), is_short in zip(records, is_read, strict=True) if is_short for row in rows]
        kept = None
        if positions is not None:
            kept = [row for rows, is_short in zip(positions, is_read, strict=True) if is_short for row in rows]
        rewards = iter(self.scorer.score_ids(ids, positions=kept))
        for (record, rows), is_short in zip(records, is_read, strict=True):
            if is_short:
                record["rewards"] = [next(rewards) for _ in rows]
            else:
                record["left_out"] = f"longer than {limit} tokens"


def read_prompted(number: int, example: Mapping[str, Any]) -> tuple[Preference, dict[str, Any]]:
    """A preference and its arguments of the chat template."""
    try:
        preference = read_preference(dict(example))
        return preference, template_kwargs(example) if preference.is_conversation else {}
    except ValueError as error:
        raise ValueError(f"Row {number}: {error}") from None


def prompt_texts(prompt: Text) -> list[str]:
    """The texts of a prompt: itself, or those of its messages."""
    return [prompt] if isinstance(prompt, str) else [text for message in prompt for text in message_texts(message)]


def is_empty(prompt: Text) -> bool:
    """Whether a prompt has no content."""
    return not any(text.strip() for text in prompt_texts(prompt))


def asked(preference: Preference, example: Mapping[str, Any]) -> Text:
    """The prompt of a row. Where the row has none of its own, the prompt is what both responses begin with, and may go
    on into the answer: `Assistant: I` ends with its colon then."""
    if not isinstance(preference.prompt, str) or not is_missing(example.get("prompt")):
        return preference.prompt
    return re.sub(r"(\n\s*[^\n:]{1,30}:)[^\n]*$", r"\1", preference.prompt.rstrip())


def prompt_key(prompt: Text) -> str:
    """A key that is equal for prompts that differ only in white space."""
    return repr(_squeezed(prompt))


def _squeezed(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, Mapping):
        return {key: _squeezed(value[key]) for key in sorted(value, key=str)}
    return [_squeezed(each) for each in value] if isinstance(value, list | tuple) else value


def split_records(records: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The records with a result, and how many have none, by reason.

    Raises:
        ValueError: a reward that is not finite.
    """
    found, left_out = [], Counter[str]()
    for record in records:
        if "left_out" in record:
            left_out[record["left_out"]] += 1
            continue
        if not np.isfinite(np.array(record["rewards"], dtype=float)).all():
            raise ValueError(
                f"Row {record['id']} has a reward that is not finite (with another context): the model is broken."
            )
        found.append(record)
    return found, dict(left_out)
