"""The recipes for FSDP2 and ZeRO-3 for real: two processes that share the weights (gloo, CPU) equal one process."""

from __future__ import annotations

import json

import pytest
import torch
from support.processes import launched_sharded
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_interdistill import RewardScorer
from hf_interdistill.cli import main
from hf_interdistill.training.checkpoints import checkpoint_error

pytestmark = pytest.mark.distributed

# What the recipes need where there is no GPU, beside `--mixed_precision no`; and what LoRA needs.
WITHOUT_GPU = {"fsdp2": {"use_cpu": True}, "zero3": {"use_cpu": False, "ddp_backend": "gloo"}}
FOR_LORA = {"fsdp2": {}, "zero3": {"gradient_checkpointing": False}}
LORA = {"use_peft": True, "lora_target_modules": "all-linear"}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 6}
KEYS = ("loss", "interaction/loss", "interaction/intra", "interaction/inter", "interaction/explained", "grad_norm")
EVALUATION = ("interaction/loss", "interaction/explained", "pairwise_accuracy", "nll", "brier")


def rewards_of(folder, pairs: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards of the chosen responses by plain transformers and by `RewardScorer`."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer(pair["prompt"] + pair["chosen"], return_tensors="pt") for pair in pairs]
    with torch.no_grad():
        plain = torch.stack([model(**text).logits[0, 0] for text in texts])
    scorer = RewardScorer.from_pretrained(str(folder))
    return plain, torch.tensor(scorer([pair["prompt"] for pair in pairs], [pair["chosen"] for pair in pairs]))


@pytest.mark.parametrize("recipe", ["fsdp2", "zero3"])
def test_two_processes_that_share_weights_equal_one(pipeline, recipe):
    """Teacher and reward model: shared prompts and two passes, LoRA, kept maps, uneven evaluation, resuming, refusals.

    The evaluation has 13 pairs in batches of four a process: the last round holds five of them.
    """
    halved = {**WITHOUT_GPU[recipe], "per_device_train_batch_size": 4}
    cache = {"teacher_cache": str(pipeline.path("maps"))}
    commands = [
        pipeline.teacher("teacher2", **halved),
        pipeline.reward("rm2", **halved, **EVALUATED),
        pipeline.reward("passes2", **halved, share_prompt="false"),
        pipeline.reward("lora2", **halved, **LORA, **FOR_LORA[recipe]),
        pipeline.reward("kept2", **halved, **cache),
        pipeline.reward("resumed2", **halved, resume_from_checkpoint=str(pipeline.path("rm2", "checkpoint-4"))),
    ]
    if recipe == "fsdp2":  # transformers has DeepSpeed's bf16 on no CPU
        commands.append(pipeline.reward("bf16", **{**halved, "bf16": True}))
    refused = [pipeline.reward("grm2", **halved, regularization_weight=0.1)]
    if recipe == "zero3":
        refused.append(pipeline.reward("checkpointed2", **halved, **LORA))
    run = launched_sharded(recipe, commands, refused)
    assert run.returncode == 0, run.stdout[-6000:]
    assert "`regularization_weight` needs the whole language-model head" in run.stdout
    assert ("`gradient_checkpointing=False`" in run.stdout) == (recipe == "zero3")
    assert not [name for name in ("grm2", "checkpointed2") if list(pipeline.path(name).glob("*"))]

    assert main(pipeline.reward("lora", **LORA)) == 0
    assert main(pipeline.reward("kept", teacher_cache=str(pipeline.path("other_maps")))) == 0
    found = {name: pipeline.farthest(name, f"{name}2") for name in ("teacher", "rm", "lora", "kept")}
    found["passes"] = pipeline.farthest("rm", "passes2")
    found["resumed"] = pipeline.farthest("rm2", "resumed2")
    print(recipe, found)
    assert max(found.values()) < 1e-6 and found["resumed"] == 0, found
    for key in KEYS:
        assert pipeline.log("rm2", key) == pytest.approx(pipeline.log("rm", key), rel=2e-5), key
    assert list(pipeline.path("maps").rglob("*")), "no maps were kept"
    if recipe == "fsdp2":
        assert pipeline.log("bf16") == pytest.approx(pipeline.log("rm"), rel=0.02)
        assert pipeline.farthest("rm", "bf16") > 1e-5

    checkpoint = pipeline.path("rm2", "checkpoint-6")
    assert checkpoint_error(checkpoint) is None
    names = {path.name for path in checkpoint.iterdir()}
    assert {"fsdp2": "pytorch_model_fsdp.bin", "zero3": "global_step6"}[recipe] in names, "nothing was sharded"
    lines = pipeline.path("data", "test.jsonl").read_text().splitlines()
    pairs = [json.loads(line) for line in lines]
    expected, sharded = rewards_of(pipeline.path("rm"), pairs), rewards_of(pipeline.path("rm2"), pairs)
    for one, other in zip(expected, sharded, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=2e-6) and one.std() > 1e-3

    assert main(pipeline.reward("exact", **EVALUATED, per_device_eval_batch_size=1)) == 0
    for key in EVALUATION:
        assert pipeline.log("rm2", f"eval_{key}") == pytest.approx(pipeline.log("exact", f"eval_{key}"), rel=1e-5), key
    assert pipeline.log("rm2", "eval_pairs") == [13]
