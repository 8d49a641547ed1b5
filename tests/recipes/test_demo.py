"""The demo's parts: stages that keep the terminal quiet, and answers by three systems."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch
from support.datasets import ROOT

DEMO = ROOT / "recipes" / "demo"
SCRIPT = """
import logging, os, subprocess, sys
from pathlib import Path
from hf_interdistill.utils.stages import Stages
stages = Stages(Path("runs/demo.log"), 2)
with stages.stage("first [odd] stage") as notes:
    print("from Python")
    sys.stderr.write("a warning\\n")
    subprocess.run([sys.executable, "-c", "print('from a subprocess')"], check=True)
    notes.append("7 of 8")
print("between")
with stages.stage("second"):
    print("the cause")
    raise SystemExit(3)
"""


def test_stages_print_one_line_each_and_log_the_rest(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert run.returncode == 3
    lines = run.stdout.splitlines()
    assert lines[0] == "[1/2] first [odd] stage: 0 s, 7 of 8"
    assert lines[1:4] == ["between", "[2/2] second: failed. The end of runs/demo.log:", "from Python"]
    assert "the cause" in lines and run.stderr == ""
    logged = (tmp_path / "runs" / "demo.log").read_text().splitlines()
    assert logged == ["from Python", "a warning", "from a subprocess", "the cause"]


@pytest.fixture
def answers(monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO))
    return importlib.import_module("answers")


@pytest.mark.parametrize(
    "has_accelerator, capabilities, expected",
    [
        (False, {"avx512_bf16": True, "amx_bf16": False}, True),
        (False, {"avx512_bf16": False, "amx_bf16": True}, True),
        (False, {"avx512_bf16": False, "avx512_f": True}, False),
        (False, {}, False),
        (True, {"avx512_bf16": True}, False),
        (False, None, False),
    ],
)
def test_bf16_is_taken_where_the_cpu_has_its_instructions(monkeypatch, has_accelerator, capabilities, expected):
    monkeypatch.syspath_prepend(str(DEMO))
    steps = importlib.import_module("steps")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_accelerator)
    if capabilities is None:  # an older torch
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert steps.trains_in_bf16() is expected


def test_answers_are_shown_with_each_models_reward(answers, monkeypatch):
    def reward(sign):
        return lambda prompts, completions: [sign * len(messages[0]["content"]) for messages in completions]

    made = [answers.Answer("plain", answers.PROMPTS[0], "[b]odd[/b]\ntext", 1.5, 1200)]
    table, rows = answers.table_of(made, {"one": reward(1), "other": reward(-1)})
    assert rows[0]["rewards"] == {"one": 15, "other": -15}
    from rich.console import Console

    console = Console(width=200, record=True, markup=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    text = console.export_text()
    assert "[b]odd[/b] text" in text and "+15.00" in text and "-15.00" in text and "1,200" in text
