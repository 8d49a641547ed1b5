"""The precision of a run: chosen by the user, or one that runs."""

from __future__ import annotations

import logging

import pytest
from trl import RewardConfig

from hf_interdistill import InteractionDistillationConfig
from hf_interdistill.interaction.teacher.config import InteractionTeacherConfig
from hf_interdistill.training import precision


@pytest.fixture(params=[False, True])
def has_gpu(request, monkeypatch) -> bool:
    """A machine with or without an accelerator that runs bf16, as transformers sees it."""
    for module in ("hf_interdistill.training.precision", "transformers.training_args"):
        monkeypatch.setattr(f"{module}.is_torch_bf16_gpu_available", lambda: request.param)
    monkeypatch.setattr(precision.torch.accelerator, "is_available", lambda: request.param)
    return request.param


def test_without_a_choice_one_that_runs_is_taken_and_said(tmp_path, has_gpu, caplog):
    with caplog.at_level(logging.WARNING):
        args = InteractionDistillationConfig(output_dir=str(tmp_path))
    assert args.bf16 is has_gpu and not args.fp16
    said = [record.message for record in caplog.records if "precision" in record.message]
    assert len(said) == (not has_gpu) and all("float32" in line and "\n" not in line for line in said)


@pytest.mark.parametrize("choice", [{}, {"bf16": False}, {"bf16": True}])
def test_on_the_cpu_the_choice_is_that_of_reward_config(tmp_path, choice, caplog):
    ours = InteractionDistillationConfig(output_dir=str(tmp_path), use_cpu=True, **choice)
    theirs = RewardConfig(output_dir=str(tmp_path), use_cpu=True, **choice)
    assert (ours.bf16, ours.fp16) == (theirs.bf16, theirs.fp16)
    assert "precision" not in caplog.text


@pytest.mark.parametrize("kind", [InteractionDistillationConfig, InteractionTeacherConfig])
@pytest.mark.parametrize("name", ["bf16", "bf16_full_eval"])
def test_a_chosen_bf16_that_cannot_run_is_an_error(tmp_path, kind, name, has_gpu):
    if has_gpu:
        assert getattr(kind(output_dir=str(tmp_path), **{name: True}), name)
        return
    with pytest.raises(ValueError, match=rf"`{name}` is True, but no accelerator .*`{name}=False`.*`use_cpu=True`"):
        kind(output_dir=str(tmp_path), **{name: True})


@pytest.mark.parametrize("kind", [InteractionDistillationConfig, InteractionTeacherConfig])
def test_fp16_on_the_cpu_would_be_float32(tmp_path, kind, has_gpu):
    with pytest.raises(ValueError, match=r"`fp16` is True, but fp16 training needs an accelerator"):
        kind(output_dir=str(tmp_path), fp16=True, use_cpu=True)
    if has_gpu:
        args = kind(output_dir=str(tmp_path), fp16=True)
        assert args.fp16 and not args.bf16
    else:
        with pytest.raises(ValueError, match="`fp16=False`"):
            kind(output_dir=str(tmp_path), fp16=True)
