"""Where a checkpoint lies, and where the converted one goes."""

from __future__ import annotations

import pytest


@pytest.fixture
def source(tmp_path):
    return tmp_path / "source"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "converted"
