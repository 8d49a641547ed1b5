"""Runs that nothing interrupted, and copies of their folder to work in."""

from __future__ import annotations

import copy
import shutil

import pytest
from support.pipeline import Pipeline

from hf_interdistill.cli import main

PICTURES = [f"hf_interdistill.interaction.publishing.{name}" for name in ("example_maps", "draw_example_maps")]


@pytest.fixture(scope="package")
def uninterrupted(tmp_path_factory):
    """A pipeline with uninterrupted runs: `teacher`, `rm`, `plain` (no teacher), `uninterrupted.jsonl`."""
    pipeline = Pipeline(tmp_path_factory.mktemp("uninterrupted") / "pipeline")
    pipeline.add_language_model(prompts=7)
    with pytest.MonkeyPatch.context() as patch:
        for picture in PICTURES:
            patch.setattr(picture, lambda *args: None)
        commands = (
            pipeline.teacher(),
            pipeline.reward(),
            pipeline.plain("plain"),
            pipeline.rain("uninterrupted.jsonl"),
        )
        assert [main(command) for command in commands] == [0, 0, 0, 0]
    return pipeline


@pytest.fixture
def pipeline(uninterrupted, tmp_path):
    """A copy of `uninterrupted` for a test to work in."""
    copied = copy.copy(uninterrupted)
    copied.folder = tmp_path / "pipeline"
    shutil.copytree(uninterrupted.folder, copied.folder)
    return copied


@pytest.fixture(autouse=True)
def _no_pictures(no_pictures):
    pass
