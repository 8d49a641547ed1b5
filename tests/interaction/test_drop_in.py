"""The trainer does all that `RewardTrainer` does: formats, columns, losses, evaluation."""

from __future__ import annotations

import json

import pytest
import torch
from support.models import build_student
from support.tokenizers import tokenizer_of
from support.training_runs import COMMON, FORMATS, as_format, config, first_step, losses, weights
from trl import RewardConfig, RewardTrainer

from hf_interdistill import InteractionDistillationTrainer


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["bytes", "metaspace"])
def test_tokens_are_those_of_reward_trainer_in_every_format(rows, tmp_path, fitted_teacher, kind, name):
    data = as_format(rows, kind)
    ours = InteractionDistillationTrainer(
        build_student(),
        config(tmp_path),
        train_dataset=data,
        processing_class=tokenizer_of(name),
        teacher=fitted_teacher,
    )
    theirs = RewardTrainer(
        build_student(),
        RewardConfig(output_dir=str(tmp_path / "trl"), **COMMON),
        train_dataset=data,
        processing_class=tokenizer_of(name),
    )
    for column in ("chosen_ids", "rejected_ids"):
        assert ours.train_dataset[column] == theirs.train_dataset[column]
    assert min(ours.train_dataset["shared_units"]) > 10


@pytest.mark.parametrize("extra", [{}, {"center_rewards_coefficient": 0.01, "gradient_accumulation_steps": 2}])
def test_weight_zero_is_reward_trainer_to_the_last_bit(dataset, tmp_path, tokenizer, extra):
    dataset = dataset.add_column("margin", [0.1 * i for i in range(len(dataset))])
    ours = InteractionDistillationTrainer(
        build_student(),
        config(tmp_path, alignment_weight=0, **extra),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    theirs = RewardTrainer(
        build_student(),
        RewardConfig(output_dir=str(tmp_path / "trl"), **COMMON, **extra),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    ours.train()
    theirs.train()
    assert losses(ours) == losses(theirs)
    for name, value in weights(theirs).items():
        assert torch.equal(value, weights(ours)[name]), name


def test_margin_and_centering_stay_in_the_loss(dataset, tmp_path, tokenizer, fitted_teacher):
    dataset = dataset.add_column("margin", [0.5] * len(dataset))
    extra = {"center_rewards_coefficient": 0.02}
    theirs = RewardTrainer(
        build_student(),
        RewardConfig(output_dir=str(tmp_path / "trl"), **{**COMMON, "max_steps": 1}, **extra),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    theirs.train()
    ours, _ = first_step(tmp_path, dataset, tokenizer, fitted_teacher, **extra)
    assert float(ours["loss"]) == pytest.approx(losses(theirs)[0] + 0.3 * ours["interaction/loss"], rel=1e-5)


def test_several_evaluation_sets_metrics_and_custom_collator(dataset, tmp_path, tokenizer, fitted_teacher):
    from trl.trainer.reward_trainer import DataCollatorForPreference

    def evaluate(make, args, **extra):
        trainer = make(
            build_student(),
            args,
            data_collator=DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id, pad_to_multiple_of=32),
            train_dataset=dataset,
            eval_dataset={"a": dataset.select(range(6)), "b": dataset.select(range(6, 11))},
            processing_class=tokenizer,
            compute_metrics=lambda prediction: {"sum": float(prediction.predictions.sum())},
            **extra,
        )
        return trainer, trainer.evaluate()

    theirs = evaluate(RewardTrainer, RewardConfig(output_dir=str(tmp_path / "trl"), **COMMON))[1]
    trainer, ours = evaluate(InteractionDistillationTrainer, config(tmp_path), teacher=fitted_teacher)
    for key in ("eval_a_sum", "eval_b_sum"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-5)
        assert ours[key] != 0
    assert ours["eval_a_loss"] > theirs["eval_a_loss"]  # one more loss
    again = trainer.evaluate(dataset.select(range(6)))
    assert again["eval_loss"] == pytest.approx(ours["eval_a_loss"])
    assert trainer.evaluate(dataset.select(range(6)))["eval_loss"] == again["eval_loss"]


def test_tools_reach_the_template(rows, tmp_path, fitted_teacher):
    tokenizer = tokenizer_of("bytes")
    tokenizer.chat_template = "{% if tools %}[{{ tools | tojson }}]{% endif %}{{ mark }}" + tokenizer.chat_template
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    data = as_format(rows, "conversational explicit").select(range(4))
    data = data.add_column("tools", [json.dumps(tools)] * 4)
    data = data.add_column("chat_template_kwargs", [{"mark": "zebra"}] * 4)
    ours, theirs = (
        make(build_student(), args, train_dataset=data, processing_class=tokenizer, **extra).train_dataset
        for make, args, extra in (
            (InteractionDistillationTrainer, config(tmp_path), {"teacher": fitted_teacher}),
            (RewardTrainer, RewardConfig(output_dir=str(tmp_path / "trl"), **COMMON), {}),
        )
    )
    assert ours["chosen_ids"] == theirs["chosen_ids"]
    text = tokenizer.decode(ours["chosen_ids"][0])
    assert "zebra" in text and '"add"' in text
    assert min(ours["shared_units"]) > 5
