"""The columns of `PreferenceTokenizer` against plain Python: characters are looked up one by one, words by sets."""

from __future__ import annotations

import json
import re
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.datasets import read_rows
from support.tokenizers import tokenizer_of

from hf_interdistill.interaction.data.preference_tokenizer import PreferenceTokenizer
from hf_interdistill.interaction.data.units import NO_UNIT, word_spans

KINDS = [("bytes", "wordpiece"), ("metaspace", "roberta")]
CONTROL = re.compile(r"</?s>|<unk>|<pad>")  # special tokens of the students' tokenizers


def contents_of(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    contents = []
    for message in value:
        content = message.get("content")
        if isinstance(content, str):
            contents.append(content)
        else:
            contents += [part["text"] for part in content or [] if part["type"] == "text"]
    return contents


def teacher_characters(value, is_prompt: bool) -> tuple[str, list[tuple[int, int] | None]]:
    """The teacher's text, and for each of its characters the content and the index in it."""
    if isinstance(value, str):
        return value, [(0, place) for place in range(len(value))]
    text, owners, number = "", [], 0
    for position, message in enumerate(value):
        lead = ("\n" if position and text else "") + (f"{message['role']}: " if is_prompt or len(value) > 1 else "")
        text, owners = text + lead, owners + [None] * len(lead)
        for part, content in enumerate(contents_of([message])):
            text, owners = text + (" " if part else ""), owners + ([None] if part else [])
            text, owners = text + content, owners + [(number, place) for place in range(len(content))]
            number += 1
    return text, owners


def student_characters(tokenizer, prompt, response) -> tuple[str, list[tuple[int, int] | None]]:
    """The student's text, and for each of its characters the content (prompt's first) and the index in it.

    The test's template writes `<|role|>`, a newline, the stripped content and `<|end|>`, a newline.
    """
    contents = contents_of(prompt) + contents_of(response)
    if isinstance(prompt, str):
        owners = [(0, place) for place in range(len(prompt))] + [(1, place) for place in range(len(response))]
        end = "" if response.endswith(tokenizer.eos_token) else tokenizer.eos_token
        return prompt + response + end, owners + [None] * len(end)
    text, owners = "", []
    for number, message in enumerate([*prompt, *response]):
        lead, content = f"<|{message['role']}|>\n", contents[number].strip()
        front = contents[number].find(content)
        text, owners = text + lead, owners + [None] * len(lead)
        text, owners = text + content, owners + [(number, front + place) for place in range(len(content))]
        text, owners = text + "<|end|>\n", owners + [None] * len("<|end|>\n")
    return text, owners


def expected_columns(row: dict, index: int, student, teacher) -> dict:
    parts = [row["prompt"], row["chosen"], row["rejected"]]
    word_at, segment_of = {}, []  # the word of (segment, content, index); the segment of a word
    for segment, part in enumerate(parts):
        for number, content in enumerate(contents_of(part)):
            for start, end in word_spans(content).tolist():
                word_at |= {(segment, number, place): len(segment_of) for place in range(start, end)}
                segment_of.append(segment)
    is_text = isinstance(row["prompt"], str)
    prompts = len(contents_of(row["prompt"]))
    rows = []  # ids, and for each token the words under it
    for side in (1, 2):
        text, owners = student_characters(student, row["prompt"], parts[side])
        words = []
        for owner in owners:
            of_prompt = owner is not None and owner[0] < prompts
            key = None if owner is None else (0, *owner) if of_prompt else (side, owner[0] - prompts, owner[1])
            words.append(word_at.get(key) if not (of_prompt and side == 2) else None)
        encoded = student(text, add_special_tokens=is_text, return_offsets_mapping=True)
        rows.append((encoded["input_ids"], encoded["offset_mapping"], words))
    for segment, part in enumerate(parts):
        text, owners = teacher_characters(part, segment == 0)
        words = [None if owner is None else word_at.get((segment, *owner)) for owner in owners]
        asked = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True}
        encoded = teacher(text, **asked)
        rows.append((encoded["input_ids"], encoded["offset_mapping"], words))
    covered = [
        [[word for word in words[start:end] if word is not None] for start, end in offsets]
        for _, offsets, words in rows
    ]
    joined = set()  # words that are in the unit of the word before them
    for tokens in covered:
        for words in tokens:
            inside = range(min(words), max(words)) if words else ()
            joined |= {word + 1 for word in inside if segment_of[word] == segment_of[word + 1]}
    units, count = [], -1
    for word in range(len(segment_of)):
        count += word not in joined
        units.append(count)
    of_tokens = [[units[words[0]] if words else NO_UNIT for words in tokens] for tokens in covered]
    seen = [set().union(*group) - {NO_UNIT} for group in (of_tokens[:2], of_tokens[2:])]
    names = ("prompt", "chosen", "rejected")
    return {
        "chosen_ids": rows[0][0],
        "rejected_ids": rows[1][0],
        "student_chosen_units": of_tokens[0],
        "student_rejected_units": of_tokens[1],
        "unit_sizes": [
            len({unit for unit, of in zip(units, segment_of, strict=True) if of == segment}) for segment in range(3)
        ],
        "pair_key": zlib.crc32(json.dumps(parts, sort_keys=True).encode()),
        "pair_index": index,
        "shared_units": len(seen[0] & seen[1]),
        "is_empty": int(any(not "".join(contents_of(part)).strip() for part in parts[1:])),
        "has_equal_ids": int(rows[0][0] == rows[1][0]),
        "units_lost": [
            0 if is_text else len({units[word] for word, of in enumerate(segment_of) if of == segment} - seen[0])
            for segment in range(3)
        ],
        "has_control_token": int(
            not is_text and any(CONTROL.search(content) for part in parts for content in contents_of(part))
        ),
        **{f"teacher_{name}_ids": rows[2 + segment][0] for segment, name in enumerate(names)},
        **{f"teacher_{name}_units": of_tokens[2 + segment] for segment, name in enumerate(names)},
    }


@pytest.mark.parametrize("kinds", KINDS)
def test_columns_of_the_demo(kinds):
    student, teacher = (tokenizer_of(kind) for kind in kinds)
    tokenize = PreferenceTokenizer(student, teacher)
    for index, row in enumerate(read_rows()[:40]):
        assert tokenize(row, index) == expected_columns(row, index, student, teacher)


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30)
WORDS = st.lists(st.sampled_from(["hello", "don't", "日本語", "🙂", "...", "x=1", "</s>", "\n"]), max_size=6).map(
    " ".join
)
# Sentences that differ, so that a template's own text is never taken for a content.
CONTENT = st.one_of(TEXT, WORDS, TEXT.map(lambda text: f"  {text}\n"))


@st.composite
def conversations(draw) -> dict:
    def messages(roles):
        return [{"role": role, "content": draw(CONTENT)} for role in roles]

    prompt = messages(draw(st.sampled_from([[], ["user"], ["system", "user"], ["user", "assistant", "user"]])))
    responses = [messages(draw(st.sampled_from([["assistant"], ["assistant", "user", "assistant"]]))) for _ in "cr"]
    return {"prompt": prompt, "chosen": responses[0], "rejected": responses[1]}


@pytest.mark.parametrize("kinds", KINDS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(row=conversations())
@example(row={part: [{"role": "assistant", "content": ""}] for part in ("prompt", "chosen", "rejected")})
def test_columns_of_any_conversation(kinds, row):
    student, teacher = (tokenizer_of(kind) for kind in kinds)
    assert PreferenceTokenizer(student, teacher)(row, 7) == expected_columns(row, 7, student, teacher)


@pytest.mark.parametrize("kinds", KINDS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(prompt=CONTENT, chosen=CONTENT, rejected=CONTENT)
@example(prompt="", chosen="a</s>", rejected="</s>")
def test_columns_of_any_text(kinds, prompt, chosen, rejected):
    student, teacher = (tokenizer_of(kind) for kind in kinds)
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    assert PreferenceTokenizer(student, teacher)(row, 0) == expected_columns(row, 0, student, teacher)
