"""Two processes (gloo, CPU) train as one process with twice the batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support.datasets import ROOT
from support.models import build_encoder, build_student
from support.tokenizers import tokenizer_of

from hf_interdistill import InteractionTeacher
from hf_interdistill.scoring.attributes import RewardAttributes

SCRIPT = """
import json, os, sys
import torch
from datasets import Dataset
from hf_interdistill import InteractionDistillationConfig, InteractionDistillationTrainer

torch.set_num_threads(1)
folder, world = sys.argv[1], int(os.environ.get("WORLD_SIZE", 1))
rows = [json.loads(line) for line in open(f"{folder}/rows.jsonl")]
args = InteractionDistillationConfig(
    output_dir=f"{folder}/run{world}", teacher_model=f"{folder}/teacher", alignment_weight=1.0, max_steps=3,
    per_device_train_batch_size=8 // world, learning_rate=1e-3, logging_steps=1, bf16=False, use_cpu=True,
    report_to="none", disable_tqdm=True, save_strategy="no", attribute_weights={"clarity": 1.0, "length": -0.5},
)
trainer = InteractionDistillationTrainer(f"{folder}/student", args, train_dataset=Dataset.from_list(rows))
trainer.train()
trainer.save_model()
if trainer.is_world_process_zero():
    with open(f"{folder}/log{world}.json", "w") as file:
        json.dump([entry for entry in trainer.state.log_history if "loss" in entry], file)
"""


@pytest.mark.slow  # `trust/test_processes.py` does it by command
def test_two_processes_equal_one(tmp_path, rows):
    build_student().save_pretrained(tmp_path / "student")
    tokenizer_of("bytes").save_pretrained(tmp_path / "student")
    model, tokenizer = build_encoder()
    InteractionTeacher(model, tokenizer, max_length=256).save_pretrained(str(tmp_path / "teacher"))
    lines = [
        json.dumps(
            {key: row[key] for key in ("prompt", "chosen", "rejected")}
            | {f"{side}_scores": {"clarity": i % 5, "length": i % 3} for side in ("chosen", "rejected")}
        )
        for i, row in enumerate(rows[:24])
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    (tmp_path / "train.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launchers = ([], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"])
    for launcher in launchers:
        command = [sys.executable, *launcher, str(tmp_path / "train.py"), str(tmp_path)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-3000:]
    one, two = (json.loads((tmp_path / f"log{world}.json").read_text()) for world in (1, 2))
    for first, second in zip(one, two, strict=True):
        for key in ("loss", "attribute/loss", "interaction/loss", "interaction/intra", "interaction/inter"):
            assert float(first[key]) == pytest.approx(float(second[key]), rel=1e-4), key
    from safetensors.torch import load_file

    weights = [load_file(tmp_path / f"run{world}" / "model.safetensors") for world in (1, 2)]
    for name, value in weights[0].items():
        assert (value - weights[1][name]).abs().max() < 1e-4, name
    heads = [RewardAttributes.from_pretrained(tmp_path / f"run{world}") for world in (1, 2)]
    assert (heads[0].weight - heads[1].weight).abs().max() < 1e-4 and heads[0].weight.abs().min() > 0
    assert (heads[0].bias - heads[1].bias).abs().max() < 1e-4
