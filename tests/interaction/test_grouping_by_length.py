"""Batches of pairs of similar length: `train_sampling_strategy`, which fails in `RewardTrainer`."""

from __future__ import annotations

import inspect

import pytest
import torch
from datasets import Dataset
from support.models import build_student
from support.training_runs import COMMON, config, losses
from transformers import TrainingArguments
from trl import RewardConfig, RewardTrainer

from hf_interdistill import InteractionDistillationTrainer, RewardScorer

HAS_STRATEGIES = "train_sampling_strategy" in inspect.signature(TrainingArguments).parameters  # transformers 5.2
GROUPED = {"train_sampling_strategy": "group_by_length"} if HAS_STRATEGIES else {"group_by_length": True}


def trainer_of(tmp_path, rows, tokenizer, teacher=None, **changes) -> InteractionDistillationTrainer:
    given = config(tmp_path, **{"alignment_weight": 0.1 if teacher else 0.0, **GROUPED, **changes})
    return InteractionDistillationTrainer(
        build_student(),
        given,
        train_dataset=Dataset.from_list(rows[:32]) if isinstance(rows, list) else rows,
        eval_dataset=Dataset.from_list(rows[32:40]) if isinstance(rows, list) else None,
        processing_class=tokenizer,
        teacher=teacher,
    )


@pytest.mark.parametrize("is_aligned", [False, True])
def test_pairs_of_similar_length_come_together(is_aligned, tmp_path, rows, tokenizer, fitted_teacher):
    trainer = trainer_of(tmp_path, rows, tokenizer, fitted_teacher if is_aligned else None)
    tokens = [len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in trainer.train_dataset]
    assert list(trainer.train_dataset["length"]) == tokens
    order = list(trainer._get_train_sampler())
    batches = [batch["attention_mask"].sum(1).view(2, -1).sum(0).tolist() for batch in trainer.get_train_dataloader()]
    assert batches == [[tokens[row] for row in order[start : start + 4]] for start in range(0, 32, 4)]
    assert sum(max(batch) - min(batch) for batch in batches) / 8 < (max(tokens) - min(tokens)) / 2
    trainer.train()
    assert len(losses(trainer)) == 3 and trainer.evaluate()["eval_loss"] > 0


def test_reward_trainer_cannot(tmp_path, rows, tokenizer):
    """TRL 1.16. Once it can, ours need not add the column."""
    trainer = RewardTrainer(
        build_student(),
        RewardConfig(str(tmp_path), **{**COMMON, **GROUPED}),
        train_dataset=Dataset.from_list(rows[:32]),
        processing_class=tokenizer,
    )
    with pytest.raises(ValueError, match="Can only automatically infer lengths"):
        trainer.train()


def test_predictions_are_in_the_order_of_the_rows(tmp_path, rows, tokenizer):
    trainer = trainer_of(tmp_path, rows, tokenizer)
    found = trainer.predict(Dataset.from_list(rows[32:40])).predictions
    scorer = RewardScorer(trainer.model, tokenizer)
    for column, side in enumerate(("chosen", "rejected")):
        expected = scorer([row["prompt"] for row in rows[32:40]], [row[side] for row in rows[32:40]])
        assert found[:, column].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, rows, tokenizer):
    """Resumed within the second epoch, whose order then differs from the first's."""
    whole = trainer_of(tmp_path / "whole", rows, tokenizer, max_steps=14)
    whole.train()
    first = trainer_of(tmp_path / "parts", rows, tokenizer, max_steps=14, save_strategy="steps", save_steps=10)
    first.train()
    torch.manual_seed(1234)
    second = trainer_of(tmp_path / "parts", rows, tokenizer, max_steps=14)
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "rm" / "checkpoint-10"))
    assert losses(second) == losses(whole)
    for one, other in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_column_of_ones_own_decides(tmp_path, rows, tokenizer):
    own = [{**row, "tokens": number} for number, row in enumerate(rows)]
    trainer = trainer_of(tmp_path, own, tokenizer, length_column_name="tokens")
    assert "length" not in trainer.train_dataset.column_names
    assert list(trainer.train_dataset["tokens"]) == list(range(32)) == trainer._get_train_sampler().lengths
    trainer.train()


def test_the_length_of_a_ranking_is_that_of_all_its_responses(tmp_path, rows, tokenizer):
    ranked = [
        {
            "prompt": row["prompt"],
            "completions": [row["chosen"], row["rejected"], [{"role": "assistant", "content": "word " * number}]],
            "ranks": [1, 2, 3],
        }
        for number, row in enumerate(rows, start=1)
    ]
    data = trainer_of(tmp_path, ranked, tokenizer).train_dataset
    assert list(data["length"]) == [
        len(row["chosen_ids"]) + len(row["rejected_ids"]) + sum(map(len, row["other_ids"])) for row in data
    ]


def test_otherwise_no_column_is_added(tmp_path, rows, tokenizer):
    default = {name: getattr(TrainingArguments("x"), name) for name in GROUPED}
    trainer = trainer_of(tmp_path, rows, tokenizer, **default)
    assert "length" not in trainer.train_dataset.column_names
    assert type(trainer._get_train_sampler()).__name__ == "RandomSampler"


@pytest.mark.parametrize("wrong", ["short", None, 3.5])
def test_lengths_that_are_no_whole_numbers_are_refused(wrong, tmp_path, rows, tokenizer):
    own = [{**row, "length": wrong} for row in rows]
    with pytest.raises(ValueError, match=rf"column `length` holds {wrong!r}.*set `length_column_name`"):
        trainer_of(tmp_path, own, tokenizer)


def test_a_stream_cannot_be_grouped(tmp_path, rows, tokenizer):
    with pytest.raises(ValueError, match="training data are a stream"):
        trainer_of(tmp_path, Dataset.from_list(rows[:32]).to_iterable_dataset(), tokenizer)


@pytest.mark.skipif(not HAS_STRATEGIES, reason="since transformers 5.2")
def test_batches_of_different_sizes_are_refused(tmp_path, rows, tokenizer):
    with pytest.raises(ValueError, match=r"'batch_rebalance'.*Use 'group_by_length'"):
        trainer_of(tmp_path, rows, tokenizer, train_sampling_strategy="batch_rebalance")
