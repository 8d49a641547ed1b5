"""A fit is resumed with the rows, encoder and settings that it began with, or refused."""

from __future__ import annotations

import contextlib
import logging

import pytest
import torch
from support.teachers import LEARNABLE, settings, small_teacher
from transformers import TrainerCallback

SHORT = {"num_train_epochs": 1, "warm_start_epochs": 1}
FLIPPED = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in LEARNABLE]


class StopAt(TrainerCallback):
    """Raises an error at a step of a stage, as an interruption does."""

    def __init__(self, stage, step):
        self.stage, self.step = stage, step

    def on_step_end(self, args, state, control, **kwargs):
        if args.output_dir.endswith(self.stage) and state.global_step == self.step:
            raise KeyboardInterrupt


def other_encoder():
    teacher = small_teacher()
    with torch.no_grad():
        teacher.network.encoder.encoder.layer[1].output.dense.bias += 0.1
    return teacher


def equal(one, other) -> bool:
    return all(torch.equal(*pair) for pair in zip(one.network.parameters(), other.network.parameters(), strict=True))


@pytest.fixture(scope="module", params=["finished", "in the pairs", "in the single responses"])
def begun(request, tmp_path_factory):
    """Folder of a fit."""
    folder = tmp_path_factory.mktemp("begun")
    callbacks = {"in the pairs": [StopAt("pair", 4)], "in the single responses": [StopAt("single", 4)]}
    with contextlib.suppress(KeyboardInterrupt):
        small_teacher().fit(LEARNABLE, args=settings(folder, **SHORT), callbacks=callbacks.get(request.param))
    return folder


@pytest.mark.parametrize(
    ("rows", "build", "changes", "message"),
    [
        (FLIPPED, small_teacher, {}, r"training rows \(36 pairs, \w+ there, 36 pairs, \w+ here\), held-out rows"),
        (LEARNABLE[:-6], small_teacher, {}, r"training rows \(36 pairs, \w+ there, \d+ pairs, \w+ here\)"),
        (LEARNABLE, other_encoder, {}, r"What differs: encoder \(\w+ there, \w+ here\)\."),
        (LEARNABLE, small_teacher, {"learning_rate": 5e-3}, r"learning_rate \(0\.002 there, 0\.005 here\)\."),
        (LEARNABLE, small_teacher, {"per_device_train_batch_size": 4}, r"pairs per step \(8 there, 4 here\)"),
        (LEARNABLE, small_teacher, {"teacher_max_length": 64}, r"tokens per row \(512 there, 64 here\)"),
        (LEARNABLE, small_teacher, {"warm_start_epochs": 2}, r"warm_start_epochs \(1 there, 2 here\)"),
    ],
)
def test_another_training_is_not_resumed(begun, rows, build, changes, message):
    before = {path: path.stat().st_mtime_ns for path in begun.rglob("*")}
    with pytest.raises(ValueError, match=f"holds a stage of a teacher .*{message}.*another `output_dir`"):
        build().fit(rows, args=settings(begun, **{**SHORT, **changes}), resume_from_checkpoint=True)
    assert {path: path.stat().st_mtime_ns for path in begun.rglob("*")} == before


def test_a_finished_stage_serves_a_longer_second_one(tmp_path):
    small_teacher().fit(LEARNABLE, args=settings(tmp_path / "a", **SHORT))
    changed = {**SHORT, "num_train_epochs": 2}
    with pytest.raises(ValueError, match=r"/pair holds .*differs: num_train_epochs \(1 there, 2 here\)\."):
        small_teacher().fit(LEARNABLE, args=settings(tmp_path / "a", **changed), resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"/pair holds .*differs: interaction_layers \(1 there, 2 here\)\."):
        args = settings(tmp_path / "a", **SHORT, interaction_layers=2)
        small_teacher().fit(LEARNABLE, args=args, resume_from_checkpoint=True)
    fresh = small_teacher()
    fresh.fit(FLIPPED, args=settings(tmp_path / "a", **changed))  # without resuming the folder is used again
    expected = small_teacher()
    expected.fit(FLIPPED, args=settings(tmp_path / "b", **changed))
    assert equal(fresh, expected)


def test_the_same_training_is_resumed_in_the_same_process_and_in_another(tmp_path):
    unbroken, teacher, again = small_teacher(), small_teacher(), small_teacher()
    unbroken.fit(LEARNABLE, args=settings(tmp_path / "a", **SHORT))
    with pytest.raises(KeyboardInterrupt):
        teacher.fit(LEARNABLE, args=settings(tmp_path / "b", **SHORT), callbacks=[StopAt("pair", 4)])
    changed = {"logging_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    with torch.no_grad():
        again.network.score.weight += 1  # a new head is random
    again.fit(LEARNABLE, args=settings(tmp_path / "a", **SHORT, **changed), resume_from_checkpoint=True)
    teacher.fit(LEARNABLE, args=settings(tmp_path / "b", **SHORT), resume_from_checkpoint=True)
    for each in (again, teacher):
        for one, other in zip(each.network.parameters(), unbroken.network.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_stage_that_says_nothing_of_its_training_is_named(tmp_path, caplog):
    small_teacher().fit(LEARNABLE, args=settings(tmp_path, **SHORT))
    (tmp_path / "pair" / "trained_on.json").unlink()
    with caplog.at_level(logging.WARNING):
        small_teacher().fit(LEARNABLE, args=settings(tmp_path, **SHORT), resume_from_checkpoint=True)
    assert "pair does not say what its stage of a teacher was trained on" in caplog.text
