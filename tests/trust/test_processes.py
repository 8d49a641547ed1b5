"""Two processes for real (`accelerate launch`, gloo, CPU): the commands give the results of one process."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file
from support.faults import RESUME
from support.processes import launched

from hf_interdistill import RewardScorer
from hf_interdistill.cli import main
from hf_interdistill.training.checkpoints import checkpoint_error

SIDES = ("chosen", "rejected")
EVALUATED = {"eval_strategy": "steps", "eval_steps": 6}
EXPLAINED = ("explained", "explained_intra", "explained_inter")
INTERACTION = tuple(f"eval_interaction/{name}" for name in ("loss", "intra", "inter", "teacher_accuracy", *EXPLAINED))


def evaluated(pipeline, output: str) -> dict[str, float]:
    """What the evaluation at the last step logged."""
    history = json.loads(pipeline.path(output, "checkpoint-6", "trainer_state.json").read_text())["log_history"]
    return next(row for row in history if "eval_loss" in row)


def test_two_processes_equal_one(pipeline):
    """Teacher, reward model, evaluation of 13 pairs in batches of four a process, and RAIN over seven prompts.

    13 pairs are two rounds of two batches: the last holds one pair and three that accelerate repeats. The encoder has
    no dropout: two processes draw other masks than one.
    """
    halved = {"per_device_train_batch_size": 4}
    run = launched(
        [
            pipeline.teacher("teacher2", **halved),
            pipeline.reward("rm2", **halved, **EVALUATED),
            pipeline.rain("answers2.jsonl"),
        ]
    )
    assert run.returncode == 0, run.stdout[-6000:]
    assert pipeline.farthest("teacher", "teacher2") < 1e-4
    assert pipeline.farthest("rm", "rm2") < 1e-4
    for key in ("loss", "interaction/loss", "interaction/intra", "interaction/inter", "interaction/explained"):
        assert pipeline.log("rm2", key) == pytest.approx(pipeline.log("rm", key), rel=1e-4)
    assert pipeline.answers("answers2.jsonl") == pipeline.answers("uninterrupted.jsonl")
    assert not list(pipeline.folder.glob("answers2.jsonl.shard-*"))

    checkpoint = pipeline.path("rm2", "checkpoint-6")
    assert checkpoint_error(checkpoint) is None
    assert load_file(checkpoint / "model.safetensors").keys() == pipeline.student_names()
    states = {"rng_state_0.pth", "rng_state_1.pth"}
    alone = {path.name for path in pipeline.path("rm", "checkpoint-6").iterdir()}
    assert {path.name for path in checkpoint.iterdir()} == alone - {"rng_state.pth"} | states

    assert main(pipeline.reward("rm1", **EVALUATED)) == 0  # batches of four in one process: the last holds one pair
    assert main(pipeline.reward("exact", **EVALUATED, per_device_eval_batch_size=1)) == 0
    exact = evaluated(pipeline, "exact")
    for output in ("rm1", "rm2"):
        found = evaluated(pipeline, output)
        assert found["eval_pairs"] == 13
        for key in (*INTERACTION, "eval_pairwise_accuracy", "eval_nll", "eval_brier"):
            assert found[key] == pytest.approx(exact[key], rel=1e-4), (output, key)
    scorer = RewardScorer.from_pretrained(str(pipeline.path("rm2")))
    pairs = [json.loads(line) for line in pipeline.path("data", "test.jsonl").read_text().splitlines()]
    chosen, rejected = (scorer([pair["prompt"] for pair in pairs], [pair[side] for pair in pairs]) for side in SIDES)
    right = sum(one > other for one, other in zip(chosen, rejected, strict=True))
    assert evaluated(pipeline, "rm2")["eval_pairwise_accuracy"] == pytest.approx(right / 13)


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_one_process_resumes_it(pipeline):
    """Killed by its judge in the second process alone; one process then ends what two began."""
    command = pipeline.rain(scorer="support.job_scorers:killing")
    run = launched([command], RAIN_TEST_KILLED_RANK="1")
    assert run.returncode != 0 and "SIGKILL" in run.stdout
    shards = sorted(pipeline.folder.glob("answers.jsonl.shard-*-of-00002"))
    kept = {json.loads(line)["id"] for shard in shards for line in shard.read_text().splitlines() if line[-1] == "}"}
    assert 1 <= len(kept) < 7
    assert main(command) == 0
    assert pipeline.answers() == pipeline.answers("uninterrupted.jsonl")


@pytest.mark.slow
def test_two_processes_resume_from_a_checkpoint(pipeline):
    halved = {"per_device_train_batch_size": 4}
    first = pipeline.reward("two", **halved)
    run = launched([first])
    assert run.returncode == 0, run.stdout[-6000:]
    whole = pipeline.weights("two")
    for name in ("checkpoint-6", "checkpoint-4"):  # as a kill at step 3 leaves it
        for path in pipeline.path("two", name).iterdir():
            path.unlink()
        pipeline.path("two", name).rmdir()
    run = launched([[*first, *RESUME]])
    assert run.returncode == 0, run.stdout[-6000:]
    resumed = pipeline.weights("two")
    assert max(float((value - resumed[name]).abs().max()) for name, value in whole.items()) == 0
