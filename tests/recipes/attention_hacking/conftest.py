"""The study's modules, and a small encoder for its teachers."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import pytest
from support.models import build_encoder
from support.study import FOLDER, NAMES


@pytest.fixture(scope="module")
def modules():
    """The study's modules by name; another study has modules of the same names."""
    before = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    sys.path.insert(0, str(FOLDER))
    found = SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    yield found
    sys.path.remove(str(FOLDER))
    for name in NAMES:
        sys.modules.pop(name)
    sys.modules.update(before)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    model, tokenizer = build_encoder()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
