"""Templates that write today's date: what is said, and that the way named fixes it."""

from __future__ import annotations

import logging
import re
from datetime import datetime

import pytest
from datasets import Dataset
from support.models import build_student
from support.tokenizers import tokenizer_of
from support.training_runs import config

from hf_interdistill import InteractionDistillationTrainer, RewardScorer

_TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
# After Llama 3: a date from outside counts, if there is one.
LLAMA3 = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}Today Date: {{ date_string }}\n" + _TURNS
)
# After SmolLM3: no way in, and the date is left out where there is a system message.
SMOLLM3 = (
    "{% set today = strftime_now('%d %B %Y') %}{% if messages[0].role != 'system' %}Today is {{ today }}.\n{% endif %}"
    + _TURNS
)


def student_with(template: str):
    tokenizer = tokenizer_of("bytes")
    tokenizer.chat_template = template
    return tokenizer


def pair(number: int = 0, system: bool = False) -> dict:
    prompt = [{"role": "system", "content": "be kind"}] * system + [{"role": "user", "content": f"number {number}"}]
    return {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }


@pytest.mark.parametrize("weight", [0, 0.3])
@pytest.mark.parametrize("is_stream", [False, True])
def test_training_warns_once_and_names_what_works(tmp_path, fitted_teacher, caplog, weight, is_stream):
    def build(template, **columns):
        rows = Dataset.from_list([{**pair(number), **columns} for number in range(8)])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            trainer = InteractionDistillationTrainer(
                build_student(),
                config(tmp_path, alignment_weight=weight),
                train_dataset=rows.to_iterable_dataset() if is_stream else rows,
                eval_dataset=rows,
                processing_class=student_with(template),
                teacher=fitted_teacher if weight else None,
            )
        return next(iter(trainer.train_dataset))["chosen_ids"], caplog.text.count("today's date")

    ids, warnings = build(LLAMA3)
    assert warnings == 1 and datetime.now().strftime("%d %b %Y") in caplog.text
    fix = re.search(r"chat_template_kwargs=\{'date_string': '([^']*)'\}", caplog.text)
    fixed_ids, warnings = build(LLAMA3, chat_template_kwargs={"date_string": fix[1]})
    assert warnings == 0 and fix[1] in student_with(LLAMA3).decode(fixed_ids) and fixed_ids != ids
    assert build(SMOLLM3)[1] == 1 and "takes no date from outside: replace its `strftime_now(...)`" in caplog.text
    assert build(_TURNS)[1] == 0


def test_scoring_warns_once_and_only_where_the_date_is_written(caplog):
    def warnings(scorer, rows, **columns):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            scorer([row["prompt"] for row in rows], [row["chosen"] for row in rows], **columns)
        return caplog.text.count("today's date")

    def scorer_with(template):
        return RewardScorer(build_student(), student_with(template))

    scorer = scorer_with(LLAMA3)
    fixed = {"chat_template_kwargs": [{"date_string": "26 Jul 2024"}] * 2}
    assert warnings(scorer, [pair(0), pair(1)], **fixed) == 0
    assert warnings(scorer, [pair(0), pair(1)]) == 1 and warnings(scorer, [pair(2)]) == 0
    scorer = scorer_with(SMOLLM3)
    assert warnings(scorer, [pair(system=True)]) == 0 and warnings(scorer, [pair()]) == 1
    assert warnings(scorer_with(_TURNS), [pair()]) == 0
    assert warnings(scorer_with("{# strftime_now #}" + _TURNS), [pair()]) == 0
