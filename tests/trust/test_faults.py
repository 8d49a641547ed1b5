"""What goes wrong in long runs: kills, full disks, judges that fail, gradients that are no numbers.

After each: what was finished is kept, nothing is done twice, the message says what to do, and the run that goes on
ends like one to which nothing happened.
"""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers.trainer_callback import CallbackHandler

from hf_interdistill import durable, job_files
from hf_interdistill.cli import main
from hf_interdistill.interaction import teacher as teacher_module
from hf_interdistill.interaction import teacher_stages
from hf_interdistill.interaction.checkpoints import fault_of
from hf_interdistill.interaction.trainer import InteractionDistillationTrainer
from trust import scorers
from trust.conftest import at_call, at_step, forked, kill_now, killed

GO_ON = ["--resume_from_checkpoint", "true"]


def limit_files(size: int) -> None:
    """No file may grow beyond this: writing fails in mid-file, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def teacher_steps(monkeypatch) -> list[str]:
    """The folder names of the stages whose training steps are made from now on."""
    steps = []
    original = teacher_stages._StageTrainer.training_step

    def counted(self, *args, **kwargs):
        steps.append(Path(self.args.output_dir).name)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(teacher_stages._StageTrainer, "training_step", counted)
    return steps


def test_a_kill_while_a_checkpoint_is_written(workshop):
    """Weights are there, the optimizer's state is not: the folder is passed over, and made anew on the way."""
    command = [*workshop.plain("killed"), *GO_ON]
    for call in (5, 2):  # four files by torch a checkpoint: of the second one, then of the one made anew
        killed(command, lambda call=call: at_call(torch, "save", call))
        assert "the save did not end" in fault_of(workshop.path("killed", "checkpoint-4"))
        assert fault_of(workshop.path("killed", "checkpoint-2")) is None
    assert main(command) == 0
    assert workshop.farthest("plain", "killed") == 0


def test_a_teacher_killed_anywhere_ends_the_same(workshop, monkeypatch):
    """In a step, in a save, when a stage is done, between the stages, while the finished teacher is written."""
    command = [*workshop.teacher("killed"), *GO_ON]
    spots = {
        "first step, nothing saved": lambda: at_step(1, "single"),
        "fourth step, saves behind it": lambda: at_step(4, "single"),
        "while the stage's weights are written": lambda: at_call(teacher_stages, "save_file", 1, is_after=True),
        "between the stages": lambda: at_step(1, "pair"),
        "fifth step of the pairs": lambda: at_step(5, "pair"),
        "while the teacher is written": lambda: at_call(teacher_module, "write_whole", 1),
    }
    for spot, arrange in spots.items():
        killed(command, arrange)
        is_done = workshop.path("killed", "single", "best.safetensors").exists()
        assert is_done == (list(spots).index(spot) >= 3), spot
    assert main(workshop.reward("early", teacher_model=str(workshop.path("killed")))) == 2  # half a teacher is none
    steps = teacher_steps(monkeypatch)
    assert main(command) == 0
    assert workshop.farthest("teacher", "killed") == 0
    assert (
        json.loads(workshop.path("killed", "interaction_teacher.json").read_text())["metrics"]
        == json.loads(workshop.path("teacher", "interaction_teacher.json").read_text())["metrics"]
    )
    assert not steps  # both stages were done before the last kill


def test_half_a_teacher_is_refused_with_what_to_do(workshop, capsys):
    workshop.path("teacher", "interaction_teacher.json").unlink()
    assert main(workshop.reward("new")) == 2
    error = capsys.readouterr().err
    assert "was not saved to its end" in error and "again with `--resume_from_checkpoint true`" in error
    assert main([*workshop.teacher(), *GO_ON]) == 0 and main(workshop.reward("new", max_steps=1)) == 0


def test_early_stopping_counts_on_after_a_kill(workshop, monkeypatch):
    """The evaluations without progress are in the checkpoint; killed at the stop itself, no step is added."""
    settings = {"warm_start_epochs": 0, "num_train_epochs": 6, "early_stopping_patience": 3, "learning_rate": 1e-6}
    steps = teacher_steps(monkeypatch)
    assert main(workshop.teacher("stopped", **settings)) == 0
    straight = len(steps)
    assert 4 <= straight < 18  # it stopped early: accuracy does not change at this learning rate
    command = [*workshop.teacher("killed", **settings), *GO_ON]
    killed(command, lambda: at_step(straight - 1, "pair"))
    killed(command, lambda: at_call(teacher_stages, "save_file", 1))
    steps.clear()
    assert main(command) == 0
    assert not steps and workshop.farthest("stopped", "killed") == 0


def test_a_new_run_takes_nothing_from_an_old_one(workshop, monkeypatch):
    """Started anew (not gone on with) in the folder of an older teacher, killed, then gone on with."""
    assert main(workshop.teacher("used", learning_rate=5e-3)) == 0
    killed(workshop.teacher("used"), lambda: at_step(4, "single"))
    assert main([*workshop.teacher("used"), *GO_ON]) == 0
    assert workshop.farthest("teacher", "used") == 0
    stage = workshop.path("used", "pair", "best.safetensors")
    stage.write_bytes(stage.read_bytes()[:-100])
    steps = teacher_steps(monkeypatch)
    assert main([*workshop.teacher("used"), *GO_ON]) == 0
    assert set(steps) == {"pair"} and workshop.farthest("teacher", "used") == 0  # the damaged stage alone


def test_teacher_and_reward_model_as_one_pipeline_killed_between(workshop, monkeypatch):
    """The same two commands again, whatever was done: the teacher is not trained twice."""
    commands = [[*workshop.teacher(), *GO_ON], [*workshop.reward("killed"), *GO_ON]]
    before = workshop.weights("teacher")
    killed(commands[1], lambda: at_call(InteractionDistillationTrainer, "train", 1))
    steps = teacher_steps(monkeypatch)
    assert [main(command) for command in commands] == [0, 0] and not steps
    assert all(torch.equal(value, before[name]) for name, value in workshop.weights("teacher").items())
    assert workshop.farthest("rm", "killed") == 0


@pytest.mark.parametrize(("kind", "size"), [("weights", 40_000), ("optimizer", 250_000)])
def test_a_full_disk_in_training(workshop, kind, size):
    """The half checkpoint is removed, the one before it named; with room again the run ends as it would have."""
    checkpoint = workshop.path("plain", "checkpoint-4")
    sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir()}
    assert sizes["model.safetensors"] > 40_000 and sizes["optimizer.pt"] > 250_000 > sizes["model.safetensors"]

    def action():
        at_call(CallbackHandler, "on_step_begin", 4, lambda self, *args: limit_files(size) or args[-1])
        return main(workshop.plain("full"))

    status, error = forked(action)
    assert status == 2
    assert "Step 4 is not saved" in error and "checkpoint-2. Make room" in error
    assert "run the same command with `--resume_from_checkpoint true`" in error
    assert sorted(path.name for path in workshop.path("full").glob("checkpoint-*")) == ["checkpoint-2"]
    assert main([*workshop.plain("full"), *GO_ON]) == 0
    assert workshop.farthest("plain", "full") == 0


def test_a_full_disk_at_the_end(workshop):
    """The last step is in a checkpoint; only the finished model is missing."""

    def action():
        def full(trainer, *args):
            limit_files(9_000)
            trainer.save_model()

        at_call(InteractionDistillationTrainer, "save_model", 4, full)
        return main(workshop.plain("full"))

    status, error = forked(action)
    assert status == 2
    assert "The model is not saved in" in error and "checkpoint-6. Make room" in error
    assert main([*workshop.plain("full"), *GO_ON]) == 0
    assert workshop.farthest("plain", "full") == 0


def test_a_full_disk_while_a_teacher_is_trained(workshop):
    command = [*workshop.teacher("full"), *GO_ON]

    def weights_of_the_stage():
        at_call(teacher_stages, "save_file", 1, lambda state, path: limit_files(9_000) or original(state, path))
        return main(command)

    original = teacher_stages.save_file
    status, error = forked(weights_of_the_stage)
    assert status == 2
    assert "best.safetensors is not saved" in error and "The stage's checkpoints are kept. Make room" in error
    assert not list(workshop.path("full", "single").glob("best*"))  # no half file, and none of scratch
    assert main(command) == 0
    assert workshop.farthest("teacher", "full") == 0


def poison(monkeypatch, owner, number: int, spoil) -> None:
    """After the backward pass of a step, spoil something of the model."""
    original, calls = owner.training_step, [0]

    def poisoned(self, model, *args, **kwargs):
        loss = original(self, model, *args, **kwargs)
        calls[0] += 1
        if calls[0] == number:
            with torch.no_grad():
                spoil(next(p for p in model.parameters() if p.grad is not None and p.dim() > 1))
        return loss

    monkeypatch.setattr(owner, "training_step", poisoned)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_that_are_no_numbers_stop_a_run_before_they_reach_the_weights(workshop, monkeypatch, capsys, value):
    with monkeypatch.context() as patch:
        poison(patch, InteractionDistillationTrainer, 4, lambda p: p.grad[0].fill_(value))
        assert main(workshop.plain("stopped")) == 2
    error = capsys.readouterr().err
    assert "The loss is finite, but its gradients are not finite at step 3" in error
    assert "saved in checkpoint-3" in error and "`--resume_from_checkpoint true`" in error
    note = json.loads(workshop.path("stopped", "nonfinite_loss.json").read_text())
    assert note["global_step"] == 3 and len(note["pair_index"]) == 8
    saved = workshop.path("stopped", "checkpoint-3")
    assert fault_of(saved) is None
    assert all(value.isfinite().all() for value in load_file(saved / "model.safetensors").values())
    assert main([*workshop.plain("stopped"), *GO_ON]) == 0  # without what spoilt it
    assert workshop.farthest("plain", "stopped") == 0


def test_rows_of_all_micro_batches_are_noted(workshop, monkeypatch):
    poison(monkeypatch, InteractionDistillationTrainer, 3, lambda p: p.grad[0].fill_(float("nan")))
    small = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert main(workshop.plain("stopped", **small)) == 2
    rows = json.loads(workshop.path("stopped", "nonfinite_loss.json").read_text())["pair_index"]
    assert len(rows) == len(set(rows)) == 8


@pytest.mark.parametrize(
    ("step", "message"),
    [(3, "The loss is not finite at step 3"), (4, "The weights are not finite at step 4, and not saved")],
    ids=["found by the loss", "found by the save"],
)
def test_weights_that_are_no_numbers_are_not_saved(workshop, monkeypatch, capsys, step, message):
    with monkeypatch.context() as patch:
        poison(patch, InteractionDistillationTrainer, step, lambda p: p.fill_(float("nan")))
        assert main(workshop.plain("stopped")) == 2
    error = capsys.readouterr().err
    assert message in error and "not saved. The last whole checkpoint is" in error
    assert [path.name for path in workshop.path("stopped").glob("checkpoint-*")] == ["checkpoint-2"]
    assert main([*workshop.plain("stopped"), *GO_ON]) == 0
    assert workshop.farthest("plain", "stopped") == 0


def test_a_teacher_stops_on_gradients_that_are_no_numbers(workshop, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        poison(patch, teacher_stages._StageTrainer, 8, lambda p: p.grad[0].fill_(float("nan")))
        assert main(workshop.teacher("stopped")) == 2
    assert "its gradients are not finite at step 1" in capsys.readouterr().err
    assert not workshop.path("stopped", "interaction_teacher.json").exists()
    assert main([*workshop.teacher("stopped"), *GO_ON]) == 0
    assert workshop.farthest("teacher", "stopped") == 0


def kept(workshop, output: str = "answers.jsonl") -> list[str]:
    """Ids with an answer, in the output and in its shards, in the order of writing."""
    paths = [workshop.path(output), *sorted(workshop.folder.glob(f"{output}.shard-*"))]
    text = "".join(path.read_text() for path in paths if path.is_file())
    return [json.loads(line)["id"] for line in text.splitlines() if line.endswith("}")]


def test_a_rain_job_killed_anywhere_ends_the_same(workshop):
    """After an answer, in the middle of one's line, while the output is put together, when its shard is removed."""

    def half_a_line():
        original, calls = job_files.os.fsync, [0]

        def cut(file):
            calls[0] += 1
            if calls[0] == 2:
                shard = next(workshop.folder.glob("answers.jsonl.shard-*"))
                shard.write_text(shard.read_text()[:-20])
                kill_now()
            return original(file)

        job_files.os.fsync = cut

    command = workshop.rain()
    spots = {
        "after the third answer": (lambda: at_call(job_files.os, "fsync", 5, is_after=True), 3),
        "in a line": (half_a_line, 4),
        "before the output is there": (lambda: at_call(durable.os, "replace", 1), 7),
        "before the shard is gone": (lambda: at_call(Path, "unlink", 1), 14),
    }
    for spot, (arrange, finished) in spots.items():
        before = set(kept(workshop))
        killed(command, arrange)
        assert set(kept(workshop)) >= before, spot
        assert len(kept(workshop)) == finished, spot  # each answer once; at the end in the output and in its shard
    assert main(command) == 0
    assert workshop.answers() == workshop.answers("straight.jsonl")
    assert not list(workshop.folder.glob("answers.jsonl.shard-*"))


def test_a_full_disk_in_a_rain_job(workshop):
    """Half a line may be left; the answers before it count, and are not searched again."""
    size, original = workshop.path("straight.jsonl").stat().st_size // 2, job_files.JobFiles.appending

    def action():
        at_call(job_files.JobFiles, "appending", 1, lambda files: limit_files(size) or original(files))
        return main(workshop.rain())

    status, error = forked(action)
    assert status == 2
    assert "File too large. There is no room to write. What was finished is kept" in error
    finished = kept(workshop)
    assert 1 <= len(finished) < 7
    assert main(workshop.rain()) == 0
    assert workshop.answers() == workshop.answers("straight.jsonl")


def test_a_judge_that_fails_at_random(workshop, capsys, monkeypatch):
    """Each time the job is called again it goes on; no answer is lost, none written twice."""
    monkeypatch.setattr(scorers.moody, "calls", 0)
    command = workshop.rain(scorer="trust.scorers:moody")
    failures, before = 0, []
    while main(command) == 2:
        failures += 1
        error = capsys.readouterr().err
        assert "the judge is out" in error and "run the job again to go on" in error
        now = kept(workshop)
        assert now[: len(before)] == before and len(now) == len(set(now))
        before = now
        assert failures < 200
    assert failures >= 2 and len(before) >= 1
    assert workshop.answers() == workshop.answers("straight.jsonl")
