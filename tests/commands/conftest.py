"""Models and data for commands."""

import pytest
from support.pipeline import Pipeline


@pytest.fixture
def pipeline_with_prompts(tmp_path) -> Pipeline:
    pipeline = Pipeline(tmp_path / "pipeline")
    pipeline.add_language_model(2)
    return pipeline
