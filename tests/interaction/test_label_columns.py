"""Label columns through the trainer: shares and ties in the loss, with what they combine with, and bad values."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset
from support.models import build_student
from support.training_runs import config, losses, weights
from trl import RewardTrainer

from hf_interdistill import InteractionDistillationTrainer

CHOSEN, TIES = [1.0, 0.7, 0.5, 0.1], [0.0, 0.2, 0.5, 0.6]


def make(tmp_path, rows, tokenizer, columns=None, teacher=None, student=None, **changes):
    """A trainer on four rows with these columns."""
    columns = columns or {}
    data = [
        {**{key: row[key] for key in ("prompt", "chosen", "rejected")}, **{name: columns[name][i] for name in columns}}
        for i, row in enumerate(rows[:4])
    ]
    changes = {"alignment_weight": 0, "max_steps": 1, **changes}
    dataset = Dataset.from_list(data)
    if changes.pop("is_streaming", False):
        dataset = dataset.to_iterable_dataset()
    student = student or scaled_student()
    return InteractionDistillationTrainer(
        student,
        config(tmp_path, **changes),
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=tokenizer,
        teacher=teacher,
    )


def scaled_student():
    student = build_student()
    student.score.weight.data.mul_(20)
    return student


def rewards_of(trainer) -> tuple[torch.Tensor, torch.Tensor]:
    rewards = [
        trainer.model(torch.tensor([row[side]])).logits[0, 0]
        for row in trainer.train_dataset
        for side in ("chosen_ids", "rejected_ids")
    ]
    chosen, rejected = torch.stack(rewards).reshape(-1, 2).T
    return chosen, rejected


def expected_loss(trainer, chosen_shares, ties, margins=(0, 0, 0, 0), model="none", factor=0.0) -> torch.Tensor:
    """The oracle: probabilities written out for each pair."""
    total = torch.zeros(())
    for one, other, share, tie, margin in zip(*rewards_of(trainer), chosen_shares, ties, margins, strict=True):
        m, rest = (one - other - margin).double(), 1 - share - tie
        share, rest = (1 - factor) * share + factor * rest, (1 - factor) * rest + factor * share
        if model == "none":
            outcomes = [(share + tie / 2, torch.sigmoid(m)), (rest + tie / 2, torch.sigmoid(-m))]
        elif model == "davidson":
            whole = (m / 2).exp() + (-m / 2).exp() + 2
            outcomes = [(share, (m / 2).exp() / whole), (rest, (-m / 2).exp() / whole), (tie, 2 / whole)]
        else:
            win, loss = torch.sigmoid(m - math.log(3)), torch.sigmoid(-m - math.log(3))
            outcomes = [(share, win), (rest, loss), (tie, 1 - win - loss)]
        total = total - sum(weight * probability.log() for weight, probability in outcomes) / 4
    return total


@pytest.mark.parametrize("share_prompt", ["false", "true"])
@pytest.mark.parametrize(
    ("columns", "shares", "ties", "options"),
    [
        ({"preference_probability": CHOSEN}, CHOSEN, [0] * 4, {}),
        ({"preference_probability": CHOSEN, "margin": [0.5, 0, -1, 2.0]}, CHOSEN, [0] * 4, {}),
        ({"preference_probability": CHOSEN}, CHOSEN, [0] * 4, {"label_smoothing_factor": 0.2}),
        ({"preference_probability": [1, 0, 1, 0]}, [1, 0, 1, 0], [0] * 4, {}),
        ({"tie_probability": [True, False, False, True]}, [0, 1, 1, 0], [1, 0, 0, 1], {}),
        ({"tie_probability": TIES}, [1.0, 0.8, 0.5, 0.4], TIES, {"tie_model": "davidson"}),
        (
            {"preference_probability": [0.9, 0.7, 0.2, 0.1], "tie_probability": TIES, "margin": [0.5, 0, -1, 2.0]},
            [0.9, 0.7, 0.2, 0.1],
            TIES,
            {"tie_model": "rao_kupper", "label_smoothing_factor": 0.1},
        ),
    ],
)
def test_loss_and_gradients_are_those_of_the_shares(
    columns, shares, ties, options, share_prompt, tmp_path, rows, tokenizer
):
    trainer = make(tmp_path, rows, tokenizer, columns, share_prompt=share_prompt, **options)
    wanted = expected_loss(
        trainer,
        shares,
        ties,
        columns.get("margin", [0] * 4),
        options.get("tie_model", "none"),
        options.get("label_smoothing_factor", 0.0),
    )
    parameters = [p for name, p in trainer.model.named_parameters() if "k_proj.bias" not in name]
    gradients = torch.autograd.grad(wanted, parameters)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    assert float(loss.detach()) == pytest.approx(float(wanted), rel=1e-4)
    scale = max(float(each.abs().max()) for each in gradients)
    for one, other in zip(torch.autograd.grad(loss, parameters), gradients, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-3, atol=1e-4 * scale)


def test_agreement_becomes_a_margin_of_the_majority(tmp_path, rows, tokenizer):
    columns = {"preference_probability": CHOSEN, "margin": [0.0, 0.3, 0.0, 0.0]}
    trainer = make(tmp_path, rows, tokenizer, columns, agreement_margin=2.0, label_smoothing_factor=0.1)
    # 2 * (share of chosen - share of rejected); the last pair is won by `rejected`, the third by nobody
    wanted = expected_loss(trainer, [1, 1, 0.5, 0], [0] * 4, [2.0, 0.8 + 0.3, 0.0, -1.6], factor=0.1)
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(float(wanted), abs=1e-4)


@pytest.mark.parametrize("is_streaming", [False, True])
def test_shares_are_kept_with_a_teacher_and_logged(is_streaming, tmp_path, rows, tokenizer, fitted_teacher):
    columns = {"preference_probability": CHOSEN, "tie_probability": [0.0, 0.2, 0.0, 0.1]}
    options = {"tie_model": "davidson", "alignment_weight": 0.5, "is_streaming": is_streaming, "max_steps": 1}
    trainer = make(tmp_path, rows, tokenizer, columns, fitted_teacher, **options)
    with torch.no_grad():
        chosen, rejected = rewards_of(trainer)
        plain = expected_loss(trainer, CHOSEN, columns["tie_probability"], model="davidson")
    trainer.train()
    logs = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert float(logs["loss"]) == pytest.approx(float(plain) + 0.5 * logs["interaction/loss"], rel=1e-3)
    right = [bool(chosen[0] > rejected[0]), bool(chosen[1] > rejected[1]), bool(chosen[3] < rejected[3])]
    assert logs["label/accuracy"] == pytest.approx(sum(right) / 3)
    tie = (2 / (2 + ((chosen - rejected) / 2).exp() + ((rejected - chosen) / 2).exp())).mean()
    assert logs["label/tie_probability"] == pytest.approx(float(tie), rel=1e-3)
    metrics = trainer.evaluate()
    assert {"eval_label/accuracy", "eval_label/tie_probability"} <= metrics.keys()


def test_shares_of_one_train_as_reward_trainer(tmp_path, rows, tokenizer):
    runs = []
    for columns in ({}, {"preference_probability": [1.0] * 4}):
        trainer = make(tmp_path, rows, tokenizer, columns, max_steps=3)
        trainer.train()
        runs.append(weights(trainer))
    trl = RewardTrainer(
        scaled_student(),
        config(tmp_path, max_steps=3, alignment_weight=0),
        train_dataset=Dataset.from_list([{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows[:4]]),
        processing_class=tokenizer,
    )
    trl.train()
    for name, value in trl.model.state_dict().items():
        assert torch.equal(runs[0][name], value), name
        torch.testing.assert_close(runs[1][name], value, rtol=1e-4, atol=1e-5)


def test_pairs_without_a_winner_are_not_counted(tmp_path, rows, tokenizer):
    trainer = make(tmp_path, rows, tokenizer, {"preference_probability": [0.5] * 4})
    trainer.train()
    assert "label/accuracy" not in {key for entry in trainer.state.log_history for key in entry}


NAN, BAD = float("nan"), r"must be a number from 0 to 1 in every row"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"preference_probability": [1.0, 1.2, 1.0, 1.0]}, rf"Row 1: `preference_probability` is 1.2, but {BAD}"),
        ({"preference_probability": [1.0, 1.0, -0.1, 1.0]}, rf"Row 2: `preference_probability` is -0.1, but {BAD}"),
        ({"preference_probability": [1.0, 1.0, 1.0, NAN]}, rf"Row 3: `preference_probability` is nan, but {BAD}"),
        ({"preference_probability": [None, 1.0, 1.0, 1.0]}, rf"Row 0: `preference_probability` is None, but {BAD}"),
        ({"preference_probability": ["1", "1", "0", "1"]}, rf"Row 0: `preference_probability` is '1', but {BAD}"),
        ({"preference_probability": [[0.5]] * 4}, rf"Row 0: `preference_probability` is \[0.5\], but {BAD}"),
        ({"tie_probability": [0.0, 0.0, 2.0, 0.0]}, rf"Row 2: `tie_probability` is 2.0, but {BAD}"),
        ({"tie_probability": [0.0, None, 0.0, 0.0]}, rf"Row 1: `tie_probability` is None, but {BAD}"),
        (
            {"preference_probability": [0.5] * 4, "tie_probability": [0.1, 0.6, 0.0, 0.0]},
            r"Row 1: `preference_probability` is 0.5 and `tie_probability` 0.6, more than 1 together",
        ),
    ],
)
def test_bad_shares_are_refused_with_their_row(columns, message, tmp_path, rows, tokenizer):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, rows, tokenizer, columns)


def test_a_bad_share_later_in_a_stream_is_refused_with_its_row(tmp_path, rows, tokenizer):
    trainer = make(tmp_path, rows, tokenizer, {"preference_probability": [1.0, 1.0, 1.0, 7.0]}, is_streaming=True)
    with pytest.raises(ValueError, match=rf"Row 3: `preference_probability` is 7.0, but {BAD}"):
        trainer.train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tie_model": "davidson"}, r"`tie_model` is 'davidson', but the train dataset has no column `tie_prob"),
        ({"agreement_margin": 1.0}, r"`agreement_margin` is 1.0, but the train dataset has no column `preference_p"),
    ],
)
def test_an_option_without_its_column_is_refused(options, message, tmp_path, rows, tokenizer):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, rows, tokenizer, {}, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tie_model": "elo"}, r"`tie_model` is 'elo', but must be one of none, davidson, rao_kupper"),
        ({"tie_parameter": 2.0}, r"`tie_parameter` is 2.0, but changes nothing without a tie model"),
        ({"tie_model": "davidson", "tie_parameter": 0.0}, r"`tie_parameter` is 0.0, but must be above 0"),
        ({"tie_model": "rao_kupper", "tie_parameter": 1.0}, r"`tie_parameter` is 1.0, but must be above 1"),
        ({"tie_model": "rao_kupper", "tie_parameter": NAN}, r"`tie_parameter` is nan, but must be above 1"),
        ({"tie_model": "davidson", "agreement_margin": 1.0}, r"the majority, which has no ties"),
        ({"agreement_margin": -1.0}, r"`agreement_margin` is -1.0, but must be 0 or positive"),
        ({"agreement_margin": float("inf")}, r"`agreement_margin` is inf, but must be 0 or positive"),
        ({"regularization_weight": 1.0}, r"`regularization_weight` is 1.0, but must be from 0 to below 1"),
        ({"regularization_weight": -0.1}, r"`regularization_weight` is -0.1, but must be from 0 to below 1"),
        ({"regularization_weight": 0.1, "regularization_beta": 0.0}, r"`regularization_beta` is 0.0, but must be pos"),
        ({"regularization_weight": 0.1, "regularization_loss": "nll"}, r"must be one of sft, dpo"),
        ({"regularization_loss": "dpo"}, r"`regularization_loss` is 'dpo', but changes nothing without"),
        ({"regularization_beta": 0.2}, r"`regularization_beta` is 0.2, but changes nothing without"),
        ({"length_penalty_weight": NAN}, r"`length_penalty_weight` is nan, but must be 0 or positive"),
        ({"length_penalty_weight": 1.0, "per_device_train_batch_size": 1}, r"one pair has no correlation"),
    ],
)
def test_options_out_of_range_or_without_effect_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)
