"""Damaged checkpoints are detected and reported, then skipped or refused; a run never resumes from one."""

from __future__ import annotations

import json
import logging
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file
from support.faults import RESUME, at_step, killed

from hf_interdistill.cli import main
from hf_interdistill.training.checkpoints import CheckpointError, checkpoint_error, checkpoint_to_resume


def cut(path, share: float = 0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


# Damages of a checkpoint, and the error of each.
DAMAGES = {
    "weights cut": (lambda folder: cut(folder / "model.safetensors", 0.9), r"model\.safetensors is damaged"),
    "weights empty": (lambda folder: cut(folder / "model.safetensors", 0), r"model\.safetensors is damaged"),
    "weights overwritten": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"garbage " * 500),
        r"model\.safetensors is damaged",
    ),
    "weights lost": (lambda folder: (folder / "model.safetensors").unlink(), "there are no weights"),
    "state garbage": (
        lambda folder: (folder / "trainer_state.json").write_text('{"global_step": 4, "log_'),
        r"trainer_state\.json cannot be read",
    ),
    "state of something else": (
        lambda folder: (folder / "trainer_state.json").write_text("[]"),
        r"trainer_state\.json cannot be read",
    ),
    "killed before the end": (
        lambda folder: (folder / "trainer_state.json").unlink(),
        r"trainer_state\.json is missing: the save did not finish",
    ),
    "optimizer cut": (lambda folder: cut(folder / "optimizer.pt"), r"optimizer\.pt is damaged \(truncated\)"),
    "optimizer lost": (lambda folder: (folder / "optimizer.pt").unlink(), "the optimizer's state is missing"),
    "scheduler lost": (lambda folder: (folder / "scheduler.pt").unlink(), "the optimizer's state is missing"),
    "random state cut": (lambda folder: cut(folder / "rng_state.pth"), r"rng_state\.pth is damaged"),
    "random state lost": (lambda folder: (folder / "rng_state.pth").unlink(), "the random state is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damages_are_named(tmp_path, damage):
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    save_file({"weight": torch.arange(500.0)}, folder / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.arange(500.0)}, folder / name)
    (folder / "trainer_state.json").write_text('{"global_step": 4}')
    assert checkpoint_error(folder) is None and checkpoint_to_resume(True, tmp_path) == str(folder)
    inflict, message = DAMAGES[damage]
    inflict(folder)
    assert re.search(message, checkpoint_error(folder))
    assert checkpoint_to_resume("true", tmp_path) is None
    with pytest.raises(CheckpointError, match=message):
        checkpoint_to_resume(str(folder), tmp_path)
    assert checkpoint_to_resume("false", tmp_path) is checkpoint_to_resume(None, tmp_path) is None


def test_shards_and_other_kinds_of_checkpoints(tmp_path):
    """Sharded weights, torch's FSDP (whole and sharded states) and DeepSpeed lay files out in their own ways."""
    state = {"trainer_state.json": '{"global_step": 4}', "rng_state_0.pth": None, "scheduler.pt": None}

    def make(name, files):
        folder = tmp_path / name
        for file, content in {**state, **files}.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                torch.save({"state": torch.zeros(9)}, path)
            elif content == "weights":
                save_file({"weight": torch.zeros(9)}, path)
            else:
                path.write_text(content)
        return folder

    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = json.dumps({"weight_map": dict(zip("ab", names, strict=True))})
    shards = {
        "model.safetensors.index.json": index,
        "model-00001-of-00002.safetensors": "weights",
        "model-00002-of-00002.safetensors": "weights",
        "optimizer.pt": None,
    }
    assert checkpoint_error(make("shards", shards)) is None
    del shards["model-00002-of-00002.safetensors"]
    assert "names model-00002-of-00002.safetensors, which is missing" in checkpoint_error(make("lost", shards))
    assert checkpoint_error(make("fsdp", {"pytorch_model_fsdp.bin": None, "optimizer.bin": None})) is None
    parts = {"pytorch_model_fsdp_0/.metadata": "x", "optimizer_0/.metadata": "x"}
    assert checkpoint_error(make("fsdp-sharded", parts)) is None
    parts["optimizer_0/__0_0.distcp"] = parts.pop("optimizer_0/.metadata")
    assert "optimizer_0 is incomplete" in checkpoint_error(make("fsdp-cut", parts))
    assert checkpoint_error(make("deepspeed", {"latest": "global_step4\n", "global_step4/states.pt": None})) is None
    assert "global_step4 is missing" in checkpoint_error(make("deepspeed-cut", {"latest": "global_step4\n"}))
    assert checkpoint_error(tmp_path / "none") == "the folder does not exist"


@pytest.mark.parametrize("damage", ["weights cut", "state garbage", "optimizer lost"])
def test_a_run_resumes_from_the_last_complete_checkpoint(pipeline, caplog, capsys, damage):
    """Whatever damaged the newest checkpoint, the run ends with the weights of an undisturbed one."""
    inflict, message = DAMAGES[damage]
    shutil.copytree(pipeline.path("plain"), pipeline.path("damaged"))
    shutil.rmtree(pipeline.path("damaged", "checkpoint-6"))
    pipeline.path("damaged", "model.safetensors").unlink()
    checkpoint = pipeline.path("damaged", "checkpoint-4")
    inflict(checkpoint)
    command = pipeline.plain("damaged")
    with caplog.at_level(logging.WARNING):
        assert main([*command, "--resume_from_checkpoint", "true"]) == 0
    assert re.search(f"checkpoint-4 is damaged and skipped: {message}", caplog.text)
    assert pipeline.farthest("plain", "damaged") == 0
    assert checkpoint_error(checkpoint) is None  # written again
    inflict(checkpoint)
    assert main([*command, "--resume_from_checkpoint", str(checkpoint)]) == 2
    error = capsys.readouterr().err
    assert (
        re.search(message, error)
        and "`resume_from_checkpoint: true`, which takes the last complete checkpoint" in error
    )


def test_without_a_complete_checkpoint_training_starts_again_and_the_trainer_refuses(pipeline):
    from hf_interdistill import InteractionDistillationConfig, InteractionDistillationTrainer
    from hf_interdistill.utils.data import load_preferences

    assert main(pipeline.plain("cut", max_steps=2)) == 0
    pipeline.path("cut", "checkpoint-2", "trainer_state.json").unlink()
    args = InteractionDistillationConfig(
        str(pipeline.path("cut")), alignment_weight=0, use_cpu=True, bf16=False, report_to="none"
    )
    data = load_preferences(str(pipeline.path("data")))["train"]
    trainer = InteractionDistillationTrainer(str(pipeline.path("student")), args, train_dataset=data)
    with pytest.raises(CheckpointError, match=r"has no complete checkpoint\. Train without it"):
        trainer.train(resume_from_checkpoint=True)
    assert main([*pipeline.plain("cut"), "--resume_from_checkpoint", "true"]) == 0
    assert pipeline.farthest("plain", "cut") == 0


def test_a_new_run_is_not_mixed_with_an_older_one(pipeline, capsys):
    """It is refused, or the older run's checkpoints are removed first: nothing resumes from them."""
    assert main(pipeline.plain("used", learning_rate=5e-3)) == 0
    before = {path: path.stat().st_mtime_ns for path in pipeline.path("used").rglob("*")}
    assert main(pipeline.plain("used")) == 2
    error = capsys.readouterr().err
    assert "used holds checkpoints of an earlier run (checkpoint-2, checkpoint-4, checkpoint-6)" in error
    assert "`--resume_from_checkpoint true`" in error and "`output_dir`" in error and "`--overwrite true`" in error
    assert main([*pipeline.plain("used"), *RESUME, "--overwrite", "true"]) == 2
    assert "Leave one of them out" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in pipeline.path("used").rglob("*")}
    killed([*pipeline.plain("used"), "--overwrite", "true"], lambda: at_step(3))
    assert [path.name for path in pipeline.path("used").glob("checkpoint-*")] == ["checkpoint-2"]
    assert main([*pipeline.plain("used"), *RESUME]) == 0
    assert pipeline.farthest("plain", "used") == 0
