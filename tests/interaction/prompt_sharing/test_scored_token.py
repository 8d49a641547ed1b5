"""Padding with EOS: the token that is scored is the same in one row, in two, and in inference."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.models import build_student
from support.tokenizers import tokenizer_of
from support.training_runs import as_format, config
from transformers import AutoModelForSequenceClassification

from hf_interdistill import InteractionDistillationTrainer, RewardScorer
from hf_interdistill.interaction.prompt_sharing.packing import PackedPairs
from hf_interdistill.interaction.prompt_sharing.sharing import PromptSharing

PAD = 2  # EOS of the tiny models
PAIRS = [([5, 6, 7, 8, PAD], [5, 6, 9, PAD]), ([5, 6, PAD], [5, 6, 7, PAD]), ([4, 5, PAD, 6], [4, 5, PAD, PAD])]


def rows_of(pairs) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
    width = max(map(len, rows)) + 1
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


tokens = st.lists(st.integers(PAD, 5), min_size=1, max_size=7)


@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=4))
def test_the_last_token_that_is_no_padding_is_scored(pairs):
    packed = PackedPairs.from_rows(*rows_of(pairs), PAD)
    for number, pair in enumerate(pairs):
        for side, row in enumerate(pair):
            places = [place for place, token in enumerate(row) if token != PAD] or [0]
            scored = packed.last_token_index[number, side]
            assert packed.input_ids[number, scored] == row[places[-1]]
            assert packed.position_ids[number, scored] == places[-1]
            assert packed.visible[number, scored].sum() == places[-1] + 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3_text"])
def test_rewards_are_those_of_two_passes(family):
    model = build_student(family, pad_token_id=PAD).double().eval()
    ids, mask = rows_of(PAIRS)
    sharing = PromptSharing(model, "true", torch.float64)
    plain = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    shared = sharing.forward(model, sharing.pack(ids, mask), use_cache=False).logits
    torch.testing.assert_close(shared, plain, rtol=1e-9, atol=1e-9)
    assert sharing.relative_reward_error(model, ids, mask) < 1


@pytest.mark.parametrize("weight", [0, 0.3])
def test_plain_text_padded_with_eos_stays_shared(rows, tmp_path, fitted_teacher, caplog, weight):
    tokenizer = tokenizer_of("bytes")
    tokenizer.pad_token = tokenizer.eos_token
    with caplog.at_level(logging.WARNING):
        trainer = InteractionDistillationTrainer(
            build_student(pad_token_id=None),
            config(tmp_path, alignment_weight=weight, share_prompt="true"),
            train_dataset=as_format(rows, "standard explicit"),
            processing_class=tokenizer,
            teacher=fitted_teacher if weight else None,
        )
        trainer.train()
    assert trainer._sharing.disabled_reason is None and "different rewards" not in caplog.text
    trainer.save_model()
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(3)])
    rows_and_mask = batch["input_ids"], batch["attention_mask"]
    model = trainer.model.eval()
    with torch.no_grad():
        shared = trainer._sharing.forward(model, PackedPairs.from_rows(*rows_and_mask, PAD), use_cache=False).logits
    plain = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "rm"))
    alone = [plain(torch.tensor([trainer.train_dataset[number]["chosen_ids"]])).logits.item() for number in range(3)]
    assert shared[:3, 0].tolist() == pytest.approx(alone, abs=1e-5)
    data = as_format(rows, "standard explicit")[:3]
    scored = RewardScorer.from_pretrained(str(tmp_path / "rm"))(data["prompt"], data["chosen"])
    assert scored == pytest.approx(alone, abs=1e-5)
