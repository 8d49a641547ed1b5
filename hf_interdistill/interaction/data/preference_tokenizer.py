"""From a preference row to token ids and units, for the student and for the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...scoring.control_tokens import SANITIZE
from ...scoring.formatting import RewardFormatter, template_kwargs
from .pairs import CHOSEN, PROMPT, REJECTED, FlatText, Preference, read_preference
from .teacher_inputs import TokenizedPair, TokenizedText, require_fast
from .units import NO_UNIT, PlacedContent, UnitTable

_SEGMENTS = ("prompt", "chosen", "rejected")
# For the teacher control tokens in a text are text: a response that contains "[SEP]" must not end there.
_AS_TEXT = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}


class PreferenceTokenizer:
    """Turns a preference row into the columns that training needs.

    Args:
        tokenizer: the student's tokenizer (fast).
        teacher_tokenizer: the teacher's tokenizer (fast).

    Returns of a call (all lists of ints unless said): `chosen_ids`, `rejected_ids` as `RewardTrainer` makes them;
    `student_chosen_units`, `student_rejected_units`, the unit of each of their tokens (prompt units in the chosen row
    only); `teacher_{prompt,chosen,rejected}_{ids,units}`; `unit_sizes`, the units in prompt, chosen and rejected;
    `pair_key` (int); for the counts in the log `shared_units`, `is_empty`, `has_equal_ids`, `has_control_token` (ints)
    and `units_lost`, those in prompt, chosen and rejected of which the chat template left the student nothing.
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
    COUNTS = ("shared_units", "is_empty", "has_equal_ids", "has_control_token", "units_lost")

    def __init__(self, tokenizer, teacher_tokenizer):
        require_fast(tokenizer, "student")
        require_fast(teacher_tokenizer, "teacher")
        self.formatter = RewardFormatter(tokenizer)
        self.teacher_tokenizer = teacher_tokenizer

    def __call__(self, example: dict[str, Any], index: int) -> dict[str, Any]:
        return self.encode(example, index)[0]

    def encode(self, example: dict[str, Any], index: int) -> tuple[dict[str, Any], UnitTable]:
        """The columns, and the table of the units that they number.

        Args:
            example: a preference row of any format. index: its number in the dataset, for `pair_index` and errors.
        """
        try:
            preference = read_preference(example)
        except ValueError as error:
            raise ValueError(f"Row {index}: {error}") from None
        kwargs = template_kwargs(example) if preference.is_conversation else {}
        flat = preference.flatten()
        table = UnitTable([part.contents for part in flat])
        student = [self._add_student_row(table, preference, flat, side, kwargs) for side in (CHOSEN, REJECTED)]
        teacher = [self._add_teacher_text(table, part, segment) for segment, part in enumerate(flat)]
        # Only now are the units final: each tokenization may have joined words.
        student_units = [table.token_units(first_words).tolist() for _, first_words in student]
        teacher_units = [table.token_units(first_words).tolist() for _, first_words in teacher]
        shared = set().union(*student_units) & set().union(*teacher_units)
        columns: dict[str, Any] = {
            "chosen_ids": student[0][0],
            "rejected_ids": student[1][0],
            "student_chosen_units": student_units[0],
            "student_rejected_units": student_units[1],
            "unit_sizes": table.sizes,
            "pair_key": preference.key,
            "pair_index": index,
            "shared_units": len(shared - {NO_UNIT}),
            "is_empty": int(any(not "".join(flat[side].contents).strip() for side in (CHOSEN, REJECTED))),
            "has_equal_ids": int(student[0][0] == student[1][0]),
            "units_lost": _lost_units(table.sizes, student_units) if preference.is_conversation else [0, 0, 0],
            "has_control_token": int(self._has_control_token(preference, kwargs)),
        }
        for name, (ids, _), units in zip(_SEGMENTS, teacher, teacher_units, strict=True):
            columns[f"teacher_{name}_ids"], columns[f"teacher_{name}_units"] = ids, units
        return columns, table

    def _has_control_token(self, preference: Preference, kwargs: dict[str, Any]) -> bool:
        """Whether the student reads a control token that a message contains as text. In plain text it may be meant."""
        if not preference.is_conversation or kwargs.get(SANITIZE):
            return False
        return self.formatter.spells_control_token([*preference.prompt, *preference.chosen, *preference.rejected])

    def _add_student_row(
        self, table: UnitTable, preference: Preference, flat: tuple[FlatText, ...], side: int, kwargs: dict[str, Any]
    ):
        """Ids of prompt and response as the student reads them, and the first word of each token."""
        response = preference.chosen if side == CHOSEN else preference.rejected
        rendered = self.formatter.render(preference.prompt, response, **kwargs)
        ids, offsets = self.formatter.encode_with_offsets(rendered, preference.is_conversation)
        owners = [(part, number) for part in (PROMPT, side) for number in range(len(flat[part].contents))]
        places = []
        for content, *span in rendered.spans:
            part, number = owners[content]
            if part == side or side == CHOSEN:  # the prompt's units are those of the chosen row
                places.append(PlacedContent(part, number, *span))
        return ids, table.add(offsets, places)

    def _add_teacher_text(self, table: UnitTable, flat: FlatText, segment: int):
        """Ids of prompt or response as the teacher reads it, and the first word of each token."""
        encoded = self.teacher_tokenizer(
            flat.text, return_offsets_mapping=True, return_token_type_ids=False, **_AS_TEXT
        )
        places = [
            PlacedContent(segment, number, 0, start, len(content))
            for number, (content, start) in enumerate(zip(flat.contents, flat.starts, strict=True))
        ]
        return encoded["input_ids"], table.add(encoded["offset_mapping"], places)


def _lost_units(sizes: Sequence[int], student_units: Sequence[Sequence[int]]) -> list[int]:
    """Units in prompt, chosen and rejected that no token of the student has."""
    read = np.zeros(sum(sizes) + 1, dtype=bool)
    for units in student_units:
        read[units] = True  # NO_UNIT is the last entry
    return [int((~part).sum()) for part in np.split(read[:-1], np.cumsum(sizes)[:-1])]


def tokenized_pair(columns: dict[str, Any]) -> TokenizedPair:
    """What the teacher reads of a pair, from the columns of `PreferenceTokenizer`."""
    return TokenizedPair(
        *(TokenizedText(columns[f"teacher_{name}_ids"], columns[f"teacher_{name}_units"]) for name in _SEGMENTS)
    )


def tokenize_without_units(tokenizer, preference: Preference) -> TokenizedPair:
    """What the teacher reads of a pair where no map is made of it: in its own training and in `score_pairs`."""
    ids = [tokenizer(flat.text, **_AS_TEXT)["input_ids"] for flat in preference.flatten()]
    return TokenizedPair(*(TokenizedText(one, [NO_UNIT] * len(one)) for one in ids))
