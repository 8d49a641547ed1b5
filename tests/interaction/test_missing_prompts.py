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
