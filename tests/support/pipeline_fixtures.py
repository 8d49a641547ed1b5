"""A workshop with runs to which nothing happened, and copies of it to work in."""

from __future__ import annotations

import copy
import shutil

import pytest

from hf_interdistill.cli import main
from support.pipeline import Workshop

PICTURE = "hf_interdistill.interaction.publishing.draw_example_maps"


@pytest.fixture(scope="package")
def straight(tmp_path_factory):
    """A workshop with runs to which nothing happened: `teacher`, `rm`, `plain` (no teacher), `straight.jsonl`."""
    workshop = Workshop(tmp_path_factory.mktemp("straight") / "workshop")
    workshop.add_language_model(prompts=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PICTURE, lambda *args: None)
        commands = (workshop.teacher(), workshop.reward(), workshop.plain("plain"), workshop.rain("straight.jsonl"))
        assert [main(command) for command in commands] == [0, 0, 0, 0]
    return workshop


@pytest.fixture
def workshop(straight, tmp_path):
    """A copy of `straight` for a test to work in."""
    copied = copy.copy(straight)
    copied.folder = tmp_path / "workshop"
    shutil.copytree(straight.folder, copied.folder)
    return copied


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """The picture of maps on the model card takes longer than all the training here."""
    monkeypatch.setattr(PICTURE, lambda *args: None)
