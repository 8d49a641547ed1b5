"""From a preference row to tokens and units for student and teacher: the one place where text becomes numbers."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...scoring.control_tokens import SANITIZE
from ...scoring.formatting import RewardFormatter, Text, is_messages, message_texts, template_kwargs
from .teacher_inputs import Piece, require_fast
from .units import NO_UNIT, UnitTable

PROMPT, CHOSEN, REJECTED = range(3)
# How the teacher reads: a text that spells "[SEP]" must not end a response.
_AS_TEXT = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}


@dataclass(frozen=True)
class Preference:
    """One preference with its prompt made explicit; text or messages throughout."""

    prompt: Text
    chosen: Text
    rejected: Text

    @property
    def is_conversation(self) -> bool:
        return not isinstance(self.chosen, str)

    @property
    def key(self) -> int:
        """A number that stands for this preference, the same in every run and process."""
        content = json.dumps([self.prompt, self.chosen, self.rejected], sort_keys=True, default=str)
        return zlib.crc32(content.encode())

    def contents(self, segment: int) -> list[str]:
        """The texts of prompt, chosen or rejected, in order."""
        value = (self.prompt, self.chosen, self.rejected)[segment]
        return [value] if isinstance(value, str) else [text for message in value for text in message_texts(message)]


def read_preference(example: dict[str, Any]) -> Preference:
    """The preference in a row of any format that `RewardTrainer` takes.

    Raises:
        ValueError: a column that is neither text nor messages, or sides of different kinds.
    """
    prompt, chosen, rejected = example.get("prompt"), example["chosen"], example["rejected"]
    values = {"chosen": chosen, "rejected": rejected, **({} if prompt is None else {"prompt": prompt})}
    is_text = {name: isinstance(value, str) for name, value in values.items()}
    for name, value in values.items():
        if not is_text[name] and not is_messages(value):
            raise ValueError(
                f"Column `{name}` holds {value!r:.80}, but a preference is text (`str`) or messages "
                "(`[{'role': ..., 'content': ...}, ...]`)."
            )
    if len(set(is_text.values())) > 1:
        raise ValueError(f"The columns {sorted(values)} mix text and messages in one row; use one kind for all.")
    if prompt is None:
        size = _common_prefix(chosen, rejected)
        prompt, chosen, rejected = chosen[:size], chosen[size:], rejected[size:]
    return Preference(prompt, chosen, rejected)


def _common_prefix(chosen: Text, rejected: Text) -> int:
    size = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        size += 1
    if isinstance(chosen, str):  # never in the middle of a word
        while size and not chosen[size - 1].isspace():
            size -= 1
    elif size and size in (len(chosen), len(rejected)):  # equal sides: the last message is the response
        size -= 1
    return size


def teacher_text(value: Text, is_prompt: bool) -> tuple[str, list[int]]:
    """The text that the teacher reads for prompt or response, and where its contents start.

    A prompt names the role of each message; a response of one message is its content alone.
    """
    if isinstance(value, str):
        return value, [0]
    text, starts = "", []
    names_roles = is_prompt or len(value) > 1
    for message in value:
        text += "\n" if text else ""
        text += f"{message['role']}: " if names_roles else ""
        for number, content in enumerate(message_texts(message)):
            text += " " if number else ""
            starts.append(len(text))
            text += content
    return text, starts


class PairEncoder:
    """Turns a preference row into the columns that training needs.

    Args:
        tokenizer: the student's tokenizer (fast).
        teacher_tokenizer: the teacher's tokenizer (fast).

    Returns of a call (all lists of ints unless said): `chosen_ids`, `rejected_ids` as `RewardTrainer` makes them;
    `student_chosen_units`, `student_rejected_units`, the unit of each of their tokens (prompt units in the chosen row
    only); `teacher_{prompt,chosen,rejected}_{ids,units}`; `unit_sizes`, the units in prompt, chosen and rejected;
    `pair_key` (int); `shared_units`, `is_empty`, `is_equal`, `spells_control` (ints, for the counts that are logged).
    """

    COLUMNS = (
        "student_chosen_units",
        "student_rejected_units",
        "teacher_prompt_ids",
        "teacher_prompt_units",
        "teacher_chosen_ids",
        "teacher_chosen_units",
        "teacher_rejected_ids",
        "teacher_rejected_units",
        "unit_sizes",
        "pair_key",
        "pair_index",
    )

    def __init__(self, tokenizer, teacher_tokenizer):
        require_fast(tokenizer, "student")
        require_fast(teacher_tokenizer, "teacher")
        self.formatter = RewardFormatter(tokenizer)
        self.teacher_tokenizer = teacher_tokenizer

    def __call__(self, example: dict[str, Any], index: int) -> dict[str, Any]:
        return self.encode(example, index)[0]

    def encode(self, example: dict[str, Any], index: int) -> tuple[dict[str, Any], UnitTable]:
        """The columns, and the units they count."""
        try:
            preference = read_preference(example)
        except ValueError as error:
            raise ValueError(f"Row {index}: {error}") from None
        contents = [preference.contents(segment) for segment in (PROMPT, CHOSEN, REJECTED)]
        table = UnitTable(contents)
        kwargs = template_kwargs(example) if preference.is_conversation else {}
        rows = [
            self._student_row(table, preference, segment, len(contents[PROMPT]), kwargs)
            for segment in (CHOSEN, REJECTED)
        ]
        pieces = [self._teacher_piece(table, preference, segment) for segment in (PROMPT, CHOSEN, REJECTED)]
        # Units are final only now: every tokenization has had its say on which words belong together.
        student_units = [table.token_units(first).tolist() for _, first in rows]
        teacher_units = [table.token_units(first).tolist() for _, first in pieces]
        seen_by_student = set(student_units[0]) | set(student_units[1])
        seen_by_teacher = set().union(*teacher_units)
        columns: dict[str, Any] = {
            "chosen_ids": rows[0][0],
            "rejected_ids": rows[1][0],
            "student_chosen_units": student_units[0],
            "student_rejected_units": student_units[1],
            "unit_sizes": table.sizes,
            "pair_key": preference.key,
            "pair_index": index,
            "shared_units": len((seen_by_student & seen_by_teacher) - {NO_UNIT}),
            "is_empty": int(any(not "".join(contents[segment]).strip() for segment in (CHOSEN, REJECTED))),
            "is_equal": int(preference.chosen == preference.rejected),
            "spells_control": int(self._spells_control(preference, kwargs)),
        }
        for name, (ids, _), units in zip(("prompt", "chosen", "rejected"), pieces, teacher_units, strict=True):
            columns[f"teacher_{name}_ids"], columns[f"teacher_{name}_units"] = ids, units
        return columns, table

    def _spells_control(self, preference: Preference, kwargs: dict[str, Any]) -> bool:
        """Whether a message spells a control token that the student will read; plain text is meant as it is."""
        if not preference.is_conversation or kwargs.get(SANITIZE):
            return False
        return self.formatter.spells_control_token([*preference.prompt, *preference.chosen, *preference.rejected])

    def _student_row(self, table: UnitTable, preference: Preference, segment: int, prompts: int, kwargs):
        response = preference.chosen if segment == CHOSEN else preference.rejected
        rendered = self.formatter.render(preference.prompt, response, **kwargs)
        ids, offsets = self.formatter.encode_with_offsets(rendered, preference.is_conversation)
        places = []
        for number, (content, start) in enumerate(zip(rendered.contents, rendered.spans, strict=True)):
            is_prompt = number < prompts
            if start is None or (is_prompt and segment == REJECTED):
                continue
            where, position = (PROMPT, number) if is_prompt else (segment, number - prompts)
            full = preference.contents(where)[position]
            # words are counted from the start of the full content, of which the template may have stripped the front
            places.append((where, position, start - max(full.find(content), 0)))
        return ids, table.add(offsets, places)

    def _teacher_piece(self, table: UnitTable, preference: Preference, segment: int):
        value = (preference.prompt, preference.chosen, preference.rejected)[segment]
        text, starts = teacher_text(value, is_prompt=segment == PROMPT)
        encoded = self.teacher_tokenizer(text, return_offsets_mapping=True, return_token_type_ids=False, **_AS_TEXT)
        places = [(segment, number, start) for number, start in enumerate(starts)]
        return encoded["input_ids"], table.add(encoded["offset_mapping"], places)


def teacher_pieces(columns: dict[str, Any]) -> tuple[Piece, Piece, Piece]:
    """Prompt, chosen and rejected of an encoded row as the teacher's pieces."""
    return tuple(
        Piece(columns[f"teacher_{name}_ids"], columns[f"teacher_{name}_units"])
        for name in ("prompt", "chosen", "rejected")
    )


def text_pieces(tokenizer, preference: Preference) -> tuple[Piece, Piece, Piece]:
    """Prompt, chosen and rejected for a teacher that reads alone (training and judging); units are left out."""

    def piece(value: Text, is_prompt: bool) -> Piece:
        text, _ = teacher_text(value, is_prompt)
        ids: Sequence[int] = tokenizer(text, **_AS_TEXT)["input_ids"]
        return Piece(ids, [NO_UNIT] * len(ids))

    return piece(preference.prompt, True), piece(preference.chosen, False), piece(preference.rejected, False)
