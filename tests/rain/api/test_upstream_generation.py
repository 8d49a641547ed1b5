"""transformers' own generation tests with the `generate` wrapper installed: the same outcomes as without.

They are not in its wheel. Give a checkout (of the installed version, or near it) to run them:

    TRANSFORMERS_SOURCE=path/to/transformers python -m pytest tests/rain/api/test_upstream_generation.py

Its tests need `pip install parameterized httpx` and read nothing from the hub.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.datasets import ROOT

MODEL_TESTS = "tests/models/llama/test_modeling_llama.py"
SELECTION = "LlamaModelTest and generate"  # the methods and marker of GenerationTesterMixin
PLUGIN = '''
import hf_interdistill
from transformers.generation import GenerationMixin

calls = 0


def pytest_sessionstart(session):
    """Counts the calls that reach the wrapper."""
    wrapper = GenerationMixin.generate
    assert hasattr(wrapper, "_rain_wrapped"), "the wrapper is not installed"

    def generate(self, *args, **kwargs):
        global calls
        calls += 1
        return wrapper(self, *args, **kwargs)

    generate.__wrapped__ = wrapper
    GenerationMixin.generate = generate


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"calls through the wrapper: {calls}")
'''


def run_tests(source: Path, folder: Path, *options: str) -> tuple[dict[str, str], str]:
    """Outcome of each test, and what was printed."""
    report = folder / "report.xml"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
    }
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", MODEL_TESTS, "-k", SELECTION, f"--junit-xml={report}", *options],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert report.exists(), run.stdout[-3000:] + run.stderr[-3000:]
    outcomes = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcomes[case.get("name")] = kinds[0] if kinds else "passed"
    return outcomes, run.stdout


@pytest.mark.slow
def test_generation_tests_of_transformers_end_alike(tmp_path):
    given = os.environ.get("TRANSFORMERS_SOURCE")
    if not given:
        pytest.skip("set TRANSFORMERS_SOURCE to a checkout of transformers; its wheel ships no tests")
    source = Path(given).resolve()
    assert (source / MODEL_TESTS).is_file(), f"{source} has no {MODEL_TESTS}; give the root of a checkout"
    (tmp_path / "with_rain.py").write_text(PLUGIN, encoding="utf-8")
    without, _ = run_tests(source, tmp_path)
    with_rain, printed = run_tests(source, tmp_path, "-p", "with_rain")
    passed = sorted(name for name, outcome in without.items() if outcome == "passed")
    print(f"{len(passed)} passed of {len(without)}; {printed.strip().splitlines()[-1]}")
    assert with_rain == without
    assert len(passed) >= 10, without
    calls = next(line for line in printed.splitlines() if line.startswith("calls through the wrapper"))
    assert int(calls.split(":")[1]) > len(passed) / 2, calls
