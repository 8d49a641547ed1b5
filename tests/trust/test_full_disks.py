"""A full disk in training: whole files stay, half files go, and the resumed run ends as if there had been room."""

from __future__ import annotations

import pytest
from support.faults import RESUME, at_call, limit_files
from support.processes import forked
from transformers.trainer_callback import CallbackHandler

from hf_interdistill.cli import main
from hf_interdistill.interaction.teacher import stages as teacher_stages
from hf_interdistill.interaction.trainer import InteractionDistillationTrainer


@pytest.mark.parametrize(("kind", "size"), [("weights", 40_000), ("optimizer", 250_000)])
def test_a_full_disk_in_training(pipeline, kind, size):
    """The half checkpoint is removed, the one before it named; with room again the run ends as it would have."""
    checkpoint = pipeline.path("plain", "checkpoint-4")
    sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir()}
    assert sizes["model.safetensors"] > 40_000 and sizes["optimizer.pt"] > 250_000 > sizes["model.safetensors"]

    def action():
        at_call(CallbackHandler, "on_step_begin", 4, lambda self, *args: limit_files(size) or args[-1])
        return main(pipeline.plain("full"))

    status, error = forked(action)
    assert status == 2
    assert "Step 4 is not saved" in error and "checkpoint-2. Free disk space" in error
    assert "run the same command with `--resume_from_checkpoint true`" in error
    assert sorted(path.name for path in pipeline.path("full").glob("checkpoint-*")) == ["checkpoint-2"]
    assert main([*pipeline.plain("full"), *RESUME]) == 0
    assert pipeline.farthest("plain", "full") == 0


def test_a_full_disk_at_the_end(pipeline):
    """The last step is in a checkpoint; only the finished model is missing."""

    def action():
        def full(trainer, *args):
            limit_files(9_000)
            trainer.save_model()

        at_call(InteractionDistillationTrainer, "save_model", 4, full)
        return main(pipeline.plain("full"))

    status, error = forked(action)
    assert status == 2
    assert "The model is not saved in" in error and "checkpoint-6. Free disk space" in error
    assert main([*pipeline.plain("full"), *RESUME]) == 0
    assert pipeline.farthest("plain", "full") == 0


def test_a_full_disk_while_a_teacher_is_trained(pipeline):
    command = [*pipeline.teacher("full"), *RESUME]

    def weights_of_the_stage():
        at_call(teacher_stages, "save_file", 1, lambda state, path: limit_files(9_000) or original(state, path))
        return main(command)

    original = teacher_stages.save_file
    status, error = forked(weights_of_the_stage)
    assert status == 2
    assert "best.safetensors is not saved" in error and "The stage's checkpoints are kept. Free disk space" in error
    assert not list(pipeline.path("full", "single").glob("best*"))  # no half file, and none of scratch
    assert main(command) == 0
    assert pipeline.farthest("teacher", "full") == 0
