"""Runs of the command line that must train the same reward model, and the teacher before it."""

from __future__ import annotations

import pytest
from support.faults import at_step, killed

from hf_interdistill.cli import main


def close(one: list[float], other: list[float], relative: float) -> None:
    assert len(one) == len(other) > 0
    assert one == pytest.approx(other, rel=relative, abs=1e-6)


def test_accumulation_is_a_large_batch(pipeline):
    """Four micro-batches of two pairs make the step of one batch of eight, of the teacher and of the reward model.

    The encoder has no dropout (it would draw other masks for other shapes) and the pairs divide evenly: accelerate
    fills a short last batch up, and a mean of means weighs short batches otherwise.
    """
    small = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert main(pipeline.teacher("teacher-small", **small)) == 0
    assert pipeline.farthest("teacher", "teacher-small") < 1e-4
    assert main(pipeline.reward("small", **small)) == 0
    for key in ("loss", "interaction/loss", "accuracy"):
        close(pipeline.log("rm", key), pipeline.log("small", key), 1e-4)
    assert pipeline.farthest("rm", "small") < 1e-4
    assert main(pipeline.reward("other", learning_rate=9e-4)) == 0
    assert pipeline.farthest("rm", "other") > 1e-4  # the measure sees a tenth of the learning rate


@pytest.mark.parametrize(
    ("changes", "losses", "farthest"),
    [
        ({"gradient_checkpointing": True}, 1e-5, 1e-5),
        ({"share_prompt": "false"}, 1e-4, 1e-4),
        ({"attn_implementation": "eager"}, 1e-4, 1e-4),
    ],
    ids=["checkpointing", "two passes", "eager"],
)
def test_other_ways_to_compute_train_the_same(pipeline, changes, losses, farthest):
    """Recomputed activations, a prompt computed twice, another attention kernel: only the order of sums differs."""
    base = {"share_prompt": "true", "gradient_checkpointing": False, "attn_implementation": "sdpa"}
    assert main(pipeline.reward("base", **base)) == 0
    assert main(pipeline.reward("other", **{**base, **changes})) == 0
    for key in ("loss", "interaction/loss", "grad_norm"):
        close(pipeline.log("base", key), pipeline.log("other", key), losses)
    assert pipeline.farthest("base", "other") < farthest


def test_a_reward_model_killed_at_every_step_ends_the_same(pipeline):
    """Killed at the end of step 1, resumed, killed at the end of step 2, and so on; checkpoints at steps 2, 4, 6.

    All random states are in the checkpoint, and the order in which the teacher gets a pair is drawn for itself, so
    the weights are equal to the last bit.
    """
    command = [*pipeline.reward("killed"), "--resume_from_checkpoint", "true"]
    for step in range(1, 7):
        killed(command, lambda step=step: at_step(step))
        assert not pipeline.path("killed", "model.safetensors").exists()
    assert main(command) == 0
    assert pipeline.farthest("rm", "killed") == 0
    assert pipeline.log("rm") == pipeline.log("killed")
