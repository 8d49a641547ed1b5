"""A folder of tiny models and data, with a fitted teacher and a finished comparison."""

from __future__ import annotations

import copy
import shutil

import pytest
from support.comparisons import config_of, recipe_of, start_forked
from support.pipeline import Pipeline

from hf_interdistill import compare
from hf_interdistill.cli import main
from hf_interdistill.comparison import runs


@pytest.fixture(scope="package")
def made(tmp_path_factory) -> Pipeline:
    """A pipeline with a fitted teacher, a recipe, and a comparison of two seeds in `compared`."""
    pipeline = Pipeline(tmp_path_factory.mktemp("comparison") / "pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_interdistill.interaction.publishing.draw_example_maps", lambda *args: None)
        patch.setattr(runs, "start", start_forked)
        assert main(pipeline.teacher(warm_start_epochs=0, num_train_epochs=1)) == 0
        config = config_of(pipeline.path("compared"), seeds=2, diagnosis_pairs=4)
        pipeline.recipe = recipe_of(pipeline)
        pipeline.comparison = compare(pipeline.recipe, config, is_progress_shown=False)
    return pipeline


@pytest.fixture
def pipeline(made, tmp_path) -> Pipeline:
    """A copy of `made` to work in; its recipe still names the models and data of the first."""
    copied = copy.copy(made)
    copied.folder = tmp_path / "pipeline"
    shutil.copytree(made.folder, copied.folder)
    return copied


@pytest.fixture(autouse=True)
def _forked_trainings(no_pictures, monkeypatch):
    monkeypatch.setattr(runs, "start", start_forked)
