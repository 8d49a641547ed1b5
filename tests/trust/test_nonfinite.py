"""Nonfinite gradients and weights stop a run before they are saved."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from support.faults import RESUME

from hf_interdistill.cli import main
from hf_interdistill.interaction.teacher import stages as teacher_stages
from hf_interdistill.interaction.trainer import InteractionDistillationTrainer
from hf_interdistill.training.checkpoints import checkpoint_error


def poison(monkeypatch, owner, number: int, corrupt) -> None:
    """Corrupt something of the model after the backward pass of a step."""
    original, calls = owner.training_step, [0]

    def poisoned(self, model, *args, **kwargs):
        loss = original(self, model, *args, **kwargs)
        calls[0] += 1
        if calls[0] == number:
            with torch.no_grad():
                corrupt(next(p for p in model.parameters() if p.grad is not None and p.dim() > 1))
        return loss

    monkeypatch.setattr(owner, "training_step", poisoned)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_gradients_stop_a_run_before_they_reach_the_weights(pipeline, monkeypatch, capsys, value):
    with monkeypatch.context() as patch:
        poison(patch, InteractionDistillationTrainer, 4, lambda p: p.grad[0].fill_(value))
        assert main(pipeline.plain("stopped")) == 2
    error = capsys.readouterr().err
    assert "The loss is finite, but its gradients are not finite at step 3" in error
    assert "saved in checkpoint-3" in error and "`--resume_from_checkpoint true`" in error
    note = json.loads(pipeline.path("stopped", "nonfinite_loss.json").read_text())
    assert note["global_step"] == 3 and len(note["pair_index"]) == 8
    saved = pipeline.path("stopped", "checkpoint-3")
    assert checkpoint_error(saved) is None
    assert all(value.isfinite().all() for value in load_file(saved / "model.safetensors").values())
    assert main([*pipeline.plain("stopped"), *RESUME]) == 0  # without the fault
    assert pipeline.farthest("plain", "stopped") == 0


def test_rows_of_all_micro_batches_are_noted(pipeline, monkeypatch):
    poison(monkeypatch, InteractionDistillationTrainer, 3, lambda p: p.grad[0].fill_(float("nan")))
    small = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert main(pipeline.plain("stopped", **small)) == 2
    rows = json.loads(pipeline.path("stopped", "nonfinite_loss.json").read_text())["pair_index"]
    assert len(rows) == len(set(rows)) == 8


@pytest.mark.parametrize(
    ("step", "message"),
    [(3, "The loss is not finite at step 3"), (4, "The weights are not finite at step 4 and are not saved")],
    ids=["found by the loss", "found by the save"],
)
def test_nonfinite_weights_are_not_saved(pipeline, monkeypatch, capsys, step, message):
    with monkeypatch.context() as patch:
        poison(patch, InteractionDistillationTrainer, step, lambda p: p.fill_(float("nan")))
        assert main(pipeline.plain("stopped")) == 2
    error = capsys.readouterr().err
    assert message in error and "not saved. The last complete checkpoint is" in error
    assert [path.name for path in pipeline.path("stopped").glob("checkpoint-*")] == ["checkpoint-2"]
    assert main([*pipeline.plain("stopped"), *RESUME]) == 0
    assert pipeline.farthest("plain", "stopped") == 0


def test_a_teacher_stops_on_nonfinite_gradients(pipeline, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        poison(patch, teacher_stages._StageTrainer, 8, lambda p: p.grad[0].fill_(float("nan")))
        assert main(pipeline.teacher("stopped")) == 2
    assert "its gradients are not finite at step 1" in capsys.readouterr().err
    assert not pipeline.path("stopped", "interaction_teacher.json").exists()
    assert main([*pipeline.teacher("stopped"), *RESUME]) == 0
    assert pipeline.farthest("teacher", "stopped") == 0
