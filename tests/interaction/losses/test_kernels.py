"""Which alignments the Triton kernels compute; `kernel_cases.py` has the tests of the kernels themselves."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys

import pytest
import torch
from support.datasets import ROOT
from support.maps import SHAPES, make_case, tokens_of
from support.models import build_student
from support.training_runs import config

from hf_interdistill import InteractionDistillationTrainer
from hf_interdistill.interaction.attention.map_sources import DenseMapSource
from hf_interdistill.interaction.attention.maps import AttentionMap
from hf_interdistill.interaction.losses.alignment import alignment_loss
from hf_interdistill.interaction.losses.triton import dispatch as kernel_choice

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (a gigabyte; `make test-kernels`)"
)


def run(*arguments, **environment):
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@needs_triton
def test_kernels():
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/interaction/losses/kernel_cases.py")
    assert " passed" in run(*arguments, **interpreted)


@needs_triton
@pytest.mark.slow
def test_kernels_compile_for_absent_gpus():
    lines = run("tests/interaction/losses/kernel_builds.py", TRITON_INTERPRET="0").splitlines()
    assert len(lines) == 12 and all(" ok" in line for line in lines)


@pytest.fixture
def case():
    query, key, token_units, segments, teacher = make_case(SHAPES[1], dtype=torch.float32)
    return AttentionMap(query, key, tokens_of(token_units, 5), 0.6, None), DenseMapSource(teacher), segments


@pytest.fixture(autouse=True)
def not_interpreted(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    kernel_choice._log_once.cache_clear()
    kernel_choice._missing_software.cache_clear()
    yield
    kernel_choice._missing_software.cache_clear()


def test_triton_where_it_cannot_run_is_an_error(case, dataset, tmp_path, tokenizer, fitted_teacher):
    message = r"'triton', but the kernels cannot run here: .* on cpu, not on a CUDA device\. Set `alignment_kernel` to"
    with pytest.raises(ValueError, match=message):
        alignment_loss(*case, kernel="triton")
    with pytest.raises(ValueError, match=message):
        InteractionDistillationTrainer(
            build_student(),
            config(tmp_path, alignment_kernel="triton"),
            train_dataset=dataset,
            processing_class=tokenizer,
            teacher=fitted_teacher,
        )
    with pytest.raises(ValueError, match="`alignment_kernel` is 'cuda', but must be one of auto, torch, triton"):
        config(tmp_path, alignment_kernel="cuda")
    with pytest.raises(ValueError, match="`alignment_kernel` is 'cuda', but must be one of auto, torch, triton"):
        alignment_loss(*case, kernel="cuda")


def test_auto_logs_once_why_it_computes_in_torch(case, caplog):
    with caplog.at_level(logging.INFO, logger="hf_interdistill"):
        automatic = alignment_loss(*case)
        alignment_loss(*case)
    notes = [record.message for record in caplog.records if "alignment_kernel" in record.message]
    assert notes == [
        "The student's map is computed in torch, a block of rows at a time (`alignment_kernel`): queries and keys are "
        "on cpu, not on a CUDA device."
    ]
    caplog.clear()
    kernel_choice._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="hf_interdistill"):
        chosen = alignment_loss(*case, kernel="torch")
    assert not caplog.records and torch.equal(chosen.loss, automatic.loss)


def test_reasons(case, monkeypatch):
    attention = case[0]

    def reason(query, key, units=5):
        tokens = tokens_of(torch.zeros(query.shape[0], query.shape[2], dtype=torch.long), units)
        return kernel_choice.unsupported_reason(AttentionMap(query, key, tokens, 1.0, None))

    query, key = attention.states
    assert "queries are torch.float64" in reason(query.double(), key.double())
    assert "keys torch.float32, not both" in reason(query.bfloat16(), key)
    wide = torch.zeros(1, 1, 2, 300)
    assert "heads are 300 wide, more than 128 in torch.float32" in reason(wide, wide)
    assert "heads are 300 wide, more than 256 in torch.float16" in reason(wide.half(), wide.half())
    assert "there are 20000 units, more than 16384" in reason(query, key, 20000)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "Triton is not installed" in reason(query, key)
    kernel_choice._missing_software.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert reason(query, key) is None
    assert not kernel_choice.should_use_triton("auto", attention, "student")  # the interpreter is never what one wants
    assert kernel_choice.should_use_triton("triton", attention, "student")
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    kernel_choice._missing_software.cache_clear()
    assert "needs a C compiler" in kernel_choice._missing_software()
