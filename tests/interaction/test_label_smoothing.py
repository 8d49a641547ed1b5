"""`label_smoothing_factor` smooths the labels of reward model and teacher, by the formula of cDPO."""

from __future__ import annotations

import pytest
import torch
from support.models import build_student
from support.teachers import settings
from support.training_runs import config, losses

from hf_interdistill import InteractionDistillationTrainer
from hf_interdistill.interaction.teacher.stages import _StageTrainer


def conservative(margins: torch.Tensor, factor: float) -> torch.Tensor:
    """The oracle, written out."""
    return (-(1 - factor) * torch.log(torch.sigmoid(margins)) - factor * torch.log(torch.sigmoid(-margins))).mean()


@pytest.mark.parametrize("share_prompt", ["false", "true"])
@pytest.mark.parametrize("margin", [None, 0.5])
def test_the_reward_loss_is_the_conservative_one(margin, share_prompt, dataset, tmp_path, tokenizer):
    dataset = dataset.select(range(4))
    if margin is not None:
        dataset = dataset.add_column("margin", [margin] * 4)
    factor, student = 0.2, build_student()
    student.score.weight.data.mul_(20)
    trainer = InteractionDistillationTrainer(
        student,
        config(tmp_path, max_steps=1, alignment_weight=0, label_smoothing_factor=factor, share_prompt=share_prompt),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    rewards = []
    with torch.no_grad():
        for row in trainer.train_dataset:
            for side in ("chosen_ids", "rejected_ids"):
                rewards.append(trainer.model(torch.tensor([row[side]])).logits[0, 0])
    chosen, rejected = torch.stack(rewards).reshape(-1, 2).T
    trainer.train()
    expected = conservative(chosen - rejected - (margin or 0.0), factor)
    assert losses(trainer)[0] == pytest.approx(float(expected), rel=1e-4)
    assert float(expected) != pytest.approx(float(conservative(chosen - rejected - (margin or 0.0), 0.0)), abs=1e-2)


def test_smoothing_is_added_to_the_other_terms(dataset, tmp_path, tokenizer):
    def first_loss(**changes):
        args = config(tmp_path, max_steps=1, alignment_weight=0, center_rewards_coefficient=0.1, **changes)
        trainer = InteractionDistillationTrainer(
            build_student(), args, train_dataset=dataset, processing_class=tokenizer
        )
        trainer.train()
        return next(entry for entry in trainer.state.log_history if "loss" in entry)

    plain, smoothed = first_loss(), first_loss(label_smoothing_factor=0.1)
    assert float(smoothed["loss"]) == pytest.approx(float(plain["loss"]) + 0.1 * plain["margin"], abs=1e-4)


def test_a_teacher_smooths_its_labels_too(tmp_path):
    trainer = object.__new__(_StageTrainer)
    trainer.is_pairwise, trainer.args = True, settings(tmp_path, label_smoothing_factor=0.3)
    model = _Constant(torch.tensor([[1.5], [0.2], [-0.4], [0.9]])).eval()
    loss = trainer.compute_loss(model, {"labels": torch.ones(2)})
    assert float(loss) == pytest.approx(float(conservative(torch.tensor([1.3, -1.3]), 0.3)), abs=1e-6)


class _Constant(torch.nn.Module):
    """A network that gives these rewards."""

    def __init__(self, rewards: torch.Tensor):
        super().__init__()
        self.rewards = rewards

    def forward(self, is_pairwise: bool) -> torch.Tensor:
        return self.rewards


@pytest.mark.parametrize(
    "option", [{"eval_steps": 10}, {"save_strategy": "no"}, {"load_best_model_at_end": True}, {"push_to_hub": True}]
)
def test_options_that_a_teachers_stages_set_are_refused(option, tmp_path):
    (name,) = option
    with pytest.raises(ValueError, match=rf"`{name}` is .*, but (each stage|a teacher is never).*Leave it out"):
        settings(tmp_path, **option)
