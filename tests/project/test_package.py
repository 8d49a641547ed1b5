"""The package as a whole: light to import, names where the documentation says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.datasets import ROOT

import hf_interdistill


def test_import_is_light():
    heavy = ("torch", "transformers", "trl", "numpy")
    code = f"import sys, hf_interdistill; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert run.stdout.strip() == "[]", run.stderr


def test_public_names_load():
    for name in hf_interdistill.__all__:
        assert getattr(hf_interdistill, name) is not None
    assert set(hf_interdistill.__all__) <= set(dir(hf_interdistill))
    with pytest.raises(AttributeError, match=r"it offers .*InteractionDistillationConfig"):
        hf_interdistill.Nothing  # noqa: B018
