"""Two processes (gloo, CPU) train as one process with twice the batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from peft import LoraConfig
from support.datasets import ROOT
from support.models import build_encoder, build_student
from support.processes import forked, forked_ranks
from support.tokenizers import tokenizer_of
from support.training_runs import config
from transformers import AutoModelForCausalLM, set_seed

from hf_interdistill import InteractionDistillationTrainer, InteractionTeacher
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


SIDES = ("chosen", "rejected")
ATTRIBUTES = {"attribute_weights": {"clarity": 1.0, "length": -0.5}}
EVERYTHING = {**ATTRIBUTES, "alignment_weight": 1.0, "regularization_weight": 0.1, "share_prompt": "true"}
OPTIONS = {
    "attributes": ATTRIBUTES,
    "attributes in one row": {**ATTRIBUTES, "share_prompt": "true"},
    "attributes and an adapter": {**ATTRIBUTES, "adapter": True},
    "alignment": {"alignment_weight": 1.0},
    "alignment and an adapter": {"alignment_weight": 1.0, "adapter": True},
    "language head": {"regularization_weight": 0.1, "regularization_loss": "dpo", "share_prompt": "true"},
    "tied language head": {"regularization_weight": 0.1, "tie_word_embeddings": True},
    "ties": {"tie_model": "davidson"},
    "rankings": {"share_prompt": "false"},
    "rankings in one row": {"share_prompt": "true"},
    "all": {**EVERYTHING, "tie_word_embeddings": True},
}
QUICK = "attributes", "attributes and an adapter", "tied language head"


def labeled(rows: list[dict], name: str) -> Dataset:
    """Eight pairs, or rankings of three responses, with the labels that an option reads."""
    pairs = [{key: row[key] for key in ("prompt", *SIDES)} for row in rows[:8]]
    for i, pair in enumerate(pairs):
        if name.startswith("rankings"):
            pair |= {"completions": [pair.pop("chosen"), pair.pop("rejected"), rows[i + 8]["chosen"]]}
            pair |= {"ranks": [1, 2, 2 + i % 2]}
        elif name == "ties":
            pair |= {"preference_probability": 0.2 + 0.1 * i, "tie_probability": 0.1}
        else:
            pair |= {f"{side}_scores": {"clarity": i % 5, "length": (i + len(side)) % 3} for side in SIDES}
    return Dataset.from_list(pairs)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OPTIONS]
)
def test_gradients_of_two_processes_are_those_of_one(name, tmp_path, rows, teacher):
    """Of every parameter, also of those that a loss reads outside of DDP's forward.

    Without `gradient_checkpointing`, and for adapters, transformers sets `find_unused_parameters`.
    """
    options = dict(OPTIONS[name])
    is_adapted = options.pop("adapter", False)
    student = build_student(tie_word_embeddings=options.pop("tie_word_embeddings", False))
    set_seed(0)
    language_model = AutoModelForCausalLM.from_config(student.config)
    language_model.model.load_state_dict(student.model.state_dict())
    language_model.save_pretrained(tmp_path / "student")
    tokenizer_of("bytes").save_pretrained(tmp_path / "student")
    data = labeled(rows, name)

    def gradients(world: int, checkpointing: bool) -> dict[str, torch.Tensor]:
        """The changes of a step of gradient descent with the learning rate 1."""
        set_seed(0)  # for the score head
        adapter = LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], target_modules=["q_proj", "k_proj"])
        steps = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0}
        settings = {"alignment_weight": 0.0, "lr_scheduler_type": "constant", **steps, **options}
        trainer = InteractionDistillationTrainer(
            str(tmp_path / "student"),
            config(tmp_path, **settings, per_device_train_batch_size=8 // world, gradient_checkpointing=checkpointing),
            train_dataset=data,
            teacher=teacher if settings["alignment_weight"] else None,
            peft_config=adapter if is_adapted else None,
        )
        trained = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
        before = {name: value.detach().clone() for name, value in trained.items()}
        trainer.train()
        assert isinstance(trainer.model_wrapped, torch.nn.parallel.DistributedDataParallel) == (world == 2)
        return {name: before[name] - value.detach() for name, value in trained.items()}

    def save(world: int) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # of the process that was copied
        found = {checkpointing: gradients(world, checkpointing) for checkpointing in (False, True)}
        if os.environ.get("RANK", "0") == "0":
            torch.save(found, tmp_path / f"{world}.pt")

    status, printed = forked(lambda: save(1))
    assert status == 0, printed
    forked_ranks(2, lambda: save(2))
    one, two = (torch.load(tmp_path / f"{world}.pt") for world in (1, 2))
    for checkpointing in (False, True):
        assert one[checkpointing].keys() == two[checkpointing].keys()
        for key, gradient in one[checkpointing].items():
            if not (is_adapted and "lora_A" in key):  # 0 at the start of an adapter
                assert gradient.any(), key
            close = {"rtol": 1e-3, "atol": 1e-4 * float(gradient.abs().max())}
            torch.testing.assert_close(two[checkpointing][key], gradient, **close, msg=f"{key}, {checkpointing}")
