"""A prompt that is missing in some or all rows is no prompt, with and without a teacher."""

from __future__ import annotations

import pytest
from datasets import Dataset
from support.models import build_student
from support.training_runs import config

from hf_interdistill import InteractionDistillationTrainer

TEXTS = [("What is it? A dog.", "What is it? A cat."), ("Why? So.", "Why? No.")]


@pytest.mark.parametrize("prompts", [[None, None], [None, "Say: "], [float("nan")] * 2])
@pytest.mark.parametrize("is_stream", [False, True])
def test_texts_without_alignment(tmp_path, tokenizer, prompts, is_stream):
    rows = [
        {"prompt": prompt, "chosen": one, "rejected": other, "tools": None, "chat_template_kwargs": None}
        for prompt, (one, other) in zip(prompts, TEXTS, strict=True)
    ]
    data = Dataset.from_list(rows)
    trainer = InteractionDistillationTrainer(
        build_student(),
        config(tmp_path, alignment_weight=0, max_steps=1),
        train_dataset=data.to_iterable_dataset() if is_stream else data,
        processing_class=tokenizer,
    )
    given = [prompt if isinstance(prompt, str) else "" for prompt in prompts]
    for side, column in enumerate(("chosen_ids", "rejected_ids")):
        expected = [
            tokenizer(p + texts[side] + tokenizer.eos_token)["input_ids"]
            for p, texts in zip(given, TEXTS, strict=True)
        ]
        assert [row[column] for row in trainer.train_dataset] == expected


@pytest.mark.parametrize("form", ["torch", "numpy", "pandas", "arrow"])
@pytest.mark.parametrize("is_text", [True, False])
def test_a_dataset_of_another_format_is_the_same_rows(tmp_path, tokenizer, form, is_text):
    def side(role, text):
        return text if is_text else [{"role": role, "content": text}]

    rows = [
        {"prompt": side("user", "Why? "), "chosen": side("assistant", one), "rejected": side("assistant", other)}
        for one, other in TEXTS
    ]
    data = Dataset.from_list([{**row, "margin": 1.0} for row in rows])
    ids = [
        InteractionDistillationTrainer(
            build_student(),
            config(tmp_path, alignment_weight=0, max_steps=1),
            train_dataset=each,
            processing_class=tokenizer,
        ).train_dataset["chosen_ids"][:]
        for each in (data, data.with_format(form))
    ]
    assert ids[0] == ids[1]


def test_bad_tools_are_named_by_row(tmp_path, tokenizer):
    row = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    with pytest.raises(ValueError, match=r"train dataset: Row 1: `tools` is the text '.x', which is not JSON"):
        InteractionDistillationTrainer(
            build_student(),
            config(tmp_path, alignment_weight=0),
            train_dataset=Dataset.from_list([{**row, "tools": None}, {**row, "tools": "{x"}]),
            processing_class=tokenizer,
        )
