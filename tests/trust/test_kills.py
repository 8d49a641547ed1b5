"""Kills in training: a checkpoint, a teacher's stages, early stopping, the pipeline of both.

After each: what was finished is kept, nothing is done twice, the message says what to do, and the run that goes on
ends like one to which nothing happened.
"""

from __future__ import annotations

import json

import torch
from support.faults import RESUME, at_call, at_step, killed, teacher_steps

from hf_interdistill.cli import main
from hf_interdistill.interaction.teacher import files as teacher_files
from hf_interdistill.interaction.teacher import stages as teacher_stages
from hf_interdistill.interaction.trainer import InteractionDistillationTrainer
from hf_interdistill.training.checkpoints import checkpoint_error


def test_a_kill_while_a_checkpoint_is_written(pipeline):
    """Weights are there, the optimizer's state is not: the folder is skipped, and written again."""
    command = [*pipeline.plain("killed"), *RESUME]
    for call in (5, 2):  # four files by torch a checkpoint: of the second one, then of the one written again
        killed(command, lambda call=call: at_call(torch, "save", call))
        assert "the save did not finish" in checkpoint_error(pipeline.path("killed", "checkpoint-4"))
        assert checkpoint_error(pipeline.path("killed", "checkpoint-2")) is None
    assert main(command) == 0
    assert pipeline.farthest("plain", "killed") == 0


def test_a_teacher_killed_anywhere_ends_the_same(pipeline, monkeypatch):
    """In a step, in a save, when a stage is done, between the stages, while the finished teacher is written."""
    command = [*pipeline.teacher("killed"), *RESUME]
    moments = {
        "first step, nothing saved": lambda: at_step(1, "single"),
        "fourth step, saves behind it": lambda: at_step(4, "single"),
        "while the stage's weights are written": lambda: at_call(teacher_stages, "save_file", 1, is_after=True),
        "between the stages": lambda: at_step(1, "pair"),
        "fifth step of the pairs": lambda: at_step(5, "pair"),
        "while the teacher is written": lambda: at_call(teacher_files, "write_atomically", 1),
    }
    for moment, arrange in moments.items():
        killed(command, arrange)
        is_done = pipeline.path("killed", "single", "best.safetensors").exists()
        assert is_done == (list(moments).index(moment) >= 3), moment
    assert main(pipeline.reward("early", teacher_model=str(pipeline.path("killed")))) == 2  # half a teacher is none
    steps = teacher_steps(monkeypatch)
    assert main(command) == 0
    assert pipeline.farthest("teacher", "killed") == 0
    assert (
        json.loads(pipeline.path("killed", "interaction_teacher.json").read_text())["metrics"]
        == json.loads(pipeline.path("teacher", "interaction_teacher.json").read_text())["metrics"]
    )
    assert not steps  # both stages were done before the last kill


def test_half_a_teacher_is_refused_with_what_to_do(pipeline, capsys):
    pipeline.path("teacher", "interaction_teacher.json").unlink()
    assert main(pipeline.reward("new")) == 2
    error = capsys.readouterr().err
    assert "was not saved completely" in error and "again with `--resume_from_checkpoint true`" in error
    assert main([*pipeline.teacher(), *RESUME]) == 0 and main(pipeline.reward("new", max_steps=1)) == 0


def test_early_stopping_keeps_its_count_after_a_kill(pipeline, monkeypatch):
    """The evaluations without progress are in the checkpoint; killed at the stop itself, no step is added."""
    settings = {"warm_start_epochs": 0, "num_train_epochs": 6, "early_stopping_patience": 3, "learning_rate": 1e-6}
    steps = teacher_steps(monkeypatch)
    assert main(pipeline.teacher("stopped", **settings)) == 0
    uninterrupted = len(steps)
    assert 4 <= uninterrupted < 18  # it stopped early: accuracy does not change at this learning rate
    command = [*pipeline.teacher("killed", **settings), *RESUME]
    killed(command, lambda: at_step(uninterrupted - 1, "pair"))
    killed(command, lambda: at_call(teacher_stages, "save_file", 1))
    steps.clear()
    assert main(command) == 0
    assert not steps and pipeline.farthest("stopped", "killed") == 0


def test_a_new_run_takes_nothing_from_an_old_one(pipeline, monkeypatch):
    """Started, not resumed, in the folder of an older teacher; killed; then resumed."""
    assert main(pipeline.teacher("used", learning_rate=5e-3)) == 0
    killed(pipeline.teacher("used"), lambda: at_step(4, "single"))
    assert main([*pipeline.teacher("used"), *RESUME]) == 0
    assert pipeline.farthest("teacher", "used") == 0
    stage = pipeline.path("used", "pair", "best.safetensors")
    stage.write_bytes(stage.read_bytes()[:-100])
    steps = teacher_steps(monkeypatch)
    assert main([*pipeline.teacher("used"), *RESUME]) == 0
    assert set(steps) == {"pair"} and pipeline.farthest("teacher", "used") == 0  # the damaged stage alone


def test_teacher_and_reward_model_as_one_pipeline_killed_between(pipeline, monkeypatch):
    """The same two commands again, whatever was done: the teacher is not trained twice."""
    commands = [[*pipeline.teacher(), *RESUME], [*pipeline.reward("killed"), *RESUME]]
    before = pipeline.weights("teacher")
    killed(commands[1], lambda: at_call(InteractionDistillationTrainer, "train", 1))
    steps = teacher_steps(monkeypatch)
    assert [main(command) for command in commands] == [0, 0] and not steps
    assert all(torch.equal(value, before[name]) for name, value in pipeline.weights("teacher").items())
    assert pipeline.farthest("rm", "killed") == 0
