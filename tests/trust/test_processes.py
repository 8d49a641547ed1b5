"""Two processes for real (`accelerate launch`, gloo, CPU): the commands do as in one process."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file
from support.faults import GO_ON
from support.launching import launched

from hf_interdistill import RewardScorer
from hf_interdistill.cli import main
from hf_interdistill.training.checkpoints import checkpoint_error

SIDES = ("chosen", "rejected")
EVALUATED = {"eval_strategy": "steps", "eval_steps": 6}
INTERACTION = tuple(f"eval_interaction/{name}" for name in ("loss", "intra", "inter", "teacher_accuracy"))


def evaluated(workshop, output: str) -> dict[str, float]:
    """What the evaluation at the last step logged."""
    history = json.loads(workshop.path(output, "checkpoint-6", "trainer_state.json").read_text())["log_history"]
    return next(row for row in history if "eval_loss" in row)


def test_two_processes_do_as_one(workshop):
    """Teacher, reward model, evaluation of 13 pairs in batches of four a process, and RAIN over seven prompts.

    13 pairs are two rounds of two batches: the last holds one pair and three that accelerate repeats. The encoder has
    no dropout: two processes draw other masks than one.
    """
    halved = {"per_device_train_batch_size": 4}
    run = launched(
        [
            workshop.teacher("teacher2", **halved),
            workshop.reward("rm2", **halved, **EVALUATED),
            workshop.rain("answers2.jsonl"),
        ]
    )
    assert run.returncode == 0, run.stdout[-6000:]
    assert workshop.farthest("teacher", "teacher2") < 1e-4
    assert workshop.farthest("rm", "rm2") < 1e-4
    for key in ("loss", "interaction/loss"):
        assert workshop.log("rm2", key) == pytest.approx(workshop.log("rm", key), rel=1e-4)
    assert workshop.answers("answers2.jsonl") == workshop.answers("straight.jsonl")
    assert not list(workshop.folder.glob("answers2.jsonl.shard-*"))

    checkpoint = workshop.path("rm2", "checkpoint-6")
    assert checkpoint_error(checkpoint) is None
    assert load_file(checkpoint / "model.safetensors").keys() == workshop.student_names()
    states = {"rng_state_0.pth", "rng_state_1.pth"}
    alone = {path.name for path in workshop.path("rm", "checkpoint-6").iterdir()}
    assert {path.name for path in checkpoint.iterdir()} == alone - {"rng_state.pth"} | states

    assert main(workshop.reward("rm1", **EVALUATED)) == 0  # batches of four in one process: the last holds one pair
    assert main(workshop.reward("exact", **EVALUATED, per_device_eval_batch_size=1)) == 0
    exact = evaluated(workshop, "exact")
    for output in ("rm1", "rm2"):
        found = evaluated(workshop, output)
        assert found["eval_pairs"] == 13
        for key in (*INTERACTION, "eval_pairwise_accuracy", "eval_nll", "eval_brier"):
            assert found[key] == pytest.approx(exact[key], rel=1e-4), (output, key)
    scorer = RewardScorer.from_pretrained(str(workshop.path("rm2")))
    pairs = [json.loads(line) for line in workshop.path("data", "test.jsonl").read_text().splitlines()]
    chosen, rejected = (scorer([pair["prompt"] for pair in pairs], [pair[side] for pair in pairs]) for side in SIDES)
    right = sum(one > other for one, other in zip(chosen, rejected, strict=True))
    assert evaluated(workshop, "rm2")["eval_pairwise_accuracy"] == pytest.approx(right / 13)


@pytest.mark.slow
def test_a_killed_process_takes_the_job_down_and_the_job_goes_on(workshop):
    """Killed by its judge in the second process alone; one process then ends what two began."""
    command = workshop.rain(scorer="support.pipeline_scorers:deadly")
    run = launched([command], RAIN_TEST_DEADLY_RANK="1")
    assert run.returncode != 0 and "SIGKILL" in run.stdout
    shards = sorted(workshop.folder.glob("answers.jsonl.shard-*-of-00002"))
    kept = {json.loads(line)["id"] for shard in shards for line in shard.read_text().splitlines() if line[-1] == "}"}
    assert 1 <= len(kept) < 7
    assert main(command) == 0
    assert workshop.answers() == workshop.answers("straight.jsonl")


@pytest.mark.slow
def test_two_processes_go_on_from_a_checkpoint(workshop):
    halved = {"per_device_train_batch_size": 4}
    first = workshop.reward("two", **halved)
    run = launched([first])
    assert run.returncode == 0, run.stdout[-6000:]
    whole = workshop.weights("two")
    for name in ("checkpoint-6", "checkpoint-4"):  # as a kill at step 3 leaves it
        for path in workshop.path("two", name).iterdir():
            path.unlink()
        workshop.path("two", name).rmdir()
    run = launched([[*first, *GO_ON]])
    assert run.returncode == 0, run.stdout[-6000:]
    resumed = workshop.weights("two")
    assert max(float((value - resumed[name]).abs().max()) for name, value in whole.items()) == 0
