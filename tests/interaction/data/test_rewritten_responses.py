"""Responses that a chat template takes apart or drops: their units, counts, and what is said about them."""

from __future__ import annotations

import logging

import pytest
from datasets import Dataset
from support.chat_templates import DEEPSEEK_R1, GLM4, QWEN3
from support.models import build_student
from support.tokenizers import tokenizer_of
from support.training_runs import config, first_step

from hf_interdistill import InteractionDistillationTrainer
from hf_interdistill.interaction.data.preference_tokenizer import PreferenceTokenizer
from hf_interdistill.interaction.data.units import NO_UNIT, word_spans

LIST_ONLY = (
    "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endfor %}"
)


def answer(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def row(number: int = 0) -> dict:
    return {
        "prompt": [{"role": "user", "content": f"Which town is number {number}?"}],
        "chosen": answer(f"<think>\nParis is number {number}</think>\n\nIt is Paris, the number {number}."),
        "rejected": answer("<think>Rome is</think>Rome is the town, not Paris."),
    }


def student_with(template: str):
    tokenizer = tokenizer_of("bytes")
    tokenizer.chat_template = template
    return tokenizer


def words(text: str) -> list[str]:
    return [text[start:end] for start, end in word_spans(text)]


@pytest.mark.parametrize(
    ("template", "has_thought", "lost"),
    [(QWEN3, True, [0, 0, 6]), (DEEPSEEK_R1, False, [0, 10, 8]), (GLM4, True, [0, 3, 0])],
    ids=["qwen3", "r1", "glm4"],
)
def test_tokens_have_the_units_of_the_words_in_them(template, has_thought, lost):
    """`lost`: thoughts that are dropped, and tags that do not stand in the text as in the content."""
    student = student_with(template)
    columns, table = PreferenceTokenizer(student, tokenizer_of("wordpiece")).encode(row(), 0)
    names = table.texts()
    prompt = words(row()["prompt"][0]["content"])
    thoughts = (words("Paris is number 0"), words("Rome is")) if has_thought else ([], [])
    answers = (words("It is Paris, the number 0."), words("Rome is the town, not Paris."))
    for side, front, thought, spoken in zip(("chosen", "rejected"), (prompt, []), thoughts, answers, strict=True):
        text = student.apply_chat_template(row()["prompt"] + row()[side], tokenize=False)
        offsets = student(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        units = columns[f"student_{side}_units"]
        found = [unit for unit in dict.fromkeys(units) if unit != NO_UNIT and names[unit] not in ("<", "think", ">")]
        found = [unit for unit in found if names[unit] != "</"]
        assert [names[unit] for unit in found] == front + thought + spoken
        first = 0 if side == "chosen" else columns["unit_sizes"][0] + columns["unit_sizes"][1]
        assert min(found) >= first and sorted(found) == found
        for (start, end), unit in zip(offsets, units, strict=True):
            if unit != NO_UNIT:
                assert text[start:end].strip() in names[unit]
    assert columns["units_lost"] == lost


def test_lost_units_are_counted_by_role_and_said(tmp_path, fitted_teacher, caplog):
    data = Dataset.from_list([row(number) for number in range(8)])
    with caplog.at_level(logging.WARNING):
        log, trainer = first_step(tmp_path, data, student_with(DEEPSEEK_R1), fitted_teacher)
    lost, sizes = (trainer.train_dataset[name] for name in ("units_lost", "unit_sizes"))
    expected = [f"{sum(each[i] for each in lost)} of {sum(each[i] for each in sizes)} of the" for i in range(3)]
    assert f"{expected[0]} prompts, {expected[1]} chosen, {expected[2]} rejected" in caplog.text
    assert expected[0].startswith("0 of") and sum(each[1] for each in lost) == 8 * 10
    assert log["interaction/inter"] > 0


def test_a_template_that_keeps_responses_says_nothing(dataset, tmp_path, tokenizer, fitted_teacher, caplog):
    with caplog.at_level(logging.WARNING):
        first_step(tmp_path, dataset, tokenizer, fitted_teacher)
    assert "no token of some units" not in caplog.text and "same token ids" not in caplog.text


def build(tmp_path, data, tokenizer, teacher, **changes):
    return InteractionDistillationTrainer(
        build_student(), config(tmp_path, **changes), train_dataset=data, processing_class=tokenizer, teacher=teacher
    )


def thought_alone(number: int) -> dict:
    return {**row(number), "rejected": answer(f"<think>Oslo?</think>{row(number)['chosen'][0]['content'][-24:]}")}


def test_pairs_that_differ_in_a_dropped_thought_are_dropped(tmp_path, fitted_teacher, caplog):
    rows = [row(number) for number in range(6)]
    rows[2]["rejected"] = answer("<think>Oslo?</think>\n\nIt is Paris, the number 2.")
    data = Dataset.from_list(rows)
    student = student_with(DEEPSEEK_R1)
    with caplog.at_level(logging.WARNING):
        trainer = build(tmp_path, data, student, fitted_teacher)
    assert trainer.train_dataset["pair_index"][:] == [0, 1, 3, 4, 5]
    assert "1 of 6 pairs were dropped (rows 2): chosen and rejected are the same token ids" in caplog.text
    stream = build(tmp_path, data.to_iterable_dataset(), student, fitted_teacher).train_dataset
    assert [each["pair_index"] for each in stream] == [0, 1, 3, 4, 5]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        plain = build(tmp_path, data, student, None, alignment_weight=0)
    assert len(plain.train_dataset) == 6 and "1 of 6 pairs stay" in caplog.text


@pytest.mark.parametrize("weight", [0, 0.3])
def test_a_dataset_that_teaches_nothing_is_refused(tmp_path, fitted_teacher, weight):
    """The template takes lists of parts, and writes nothing of contents that are texts."""
    data = Dataset.from_list([row(number) for number in range(4)])
    teacher = fitted_teacher if weight else None
    with pytest.raises(ValueError, match="of all 4, chosen and rejected are the same token ids"):
        build(tmp_path, data, student_with(LIST_ONLY), teacher, alignment_weight=weight)
    parts = [
        {
            side: [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
            for side, messages in row(number).items()
        }
        for number in range(4)
    ]
    trainer = build(tmp_path, Dataset.from_list(parts), student_with(LIST_ONLY), teacher, alignment_weight=weight)
    assert len(trainer.train_dataset) == 4


def test_a_stream_warns_of_the_first_response_that_loses_units(tmp_path, fitted_teacher, caplog):
    stream = Dataset.from_list([row(number) for number in range(8)]).to_iterable_dataset()
    with caplog.at_level(logging.WARNING):
        first_step(tmp_path, stream, student_with(DEEPSEEK_R1), fitted_teacher)
    assert (
        caplog.text.count("no token of some units") == 1 and "train dataset, row 0: the chat template" in caplog.text
    )
