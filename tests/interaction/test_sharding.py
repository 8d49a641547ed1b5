"""Sharded training (torch's FSDP2, two processes on the CPU): the teacher is whole, the alignment's gradient exact."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
from support.models import build_encoder, build_student
from support.processes import forked_ranks
from torch.distributed.fsdp import fully_shard

from hf_interdistill import InteractionTeacher
from hf_interdistill.interaction.attention.map_sources import DenseMapSource
from hf_interdistill.interaction.attention.maps import UnitTokens, concatenate_rows, student_map
from hf_interdistill.interaction.attention.recorder import AttentionRecorder
from hf_interdistill.interaction.losses.alignment import alignment_loss
from hf_interdistill.utils.unsharded import load_unsharded
from hf_interdistill.utils.whole_models import load_with_report


def gradients(is_sharded: bool) -> dict[str, torch.Tensor]:
    """Every process gets the same pair, so the mean over processes equals one process's."""
    model = build_student("qwen3").double().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    recorder = AttentionRecorder(model, [1])
    if is_sharded:
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    ids = torch.randint(4, 900, (2, 12), generator=torch.Generator().manual_seed(0))
    with recorder:
        rewards = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    index = torch.arange(24).reshape(1, 24)
    units = torch.arange(24).reshape(1, 24)
    segments = torch.tensor([[0] * 8 + [1] * 8 + [2] * 8])
    target = torch.rand(1, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).softmax(-1)
    tokens = UnitTokens.from_units(units, units >= 0, 24)
    student = student_map(concatenate_rows(recorder.records[0]), index, tokens)
    result = alignment_loss(student, DenseMapSource(target), segments)
    loss = -torch.nn.functional.logsigmoid(rewards[0] - rewards[1]).mean() + result.loss
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {name: gradient.full_tensor() for name, gradient in found.items()} if is_sharded else found


def check_teacher_and_gradients(encoder: str) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)  # for what the checkpoint lacks: pooler and score head
    teacher = InteractionTeacher.from_pretrained(encoder)
    weights = [parameter.detach() for parameter in teacher.network.parameters()]
    assert not any(weight.is_meta for weight in weights), "the teacher has weights on no device"
    sums = torch.stack([weight.double().abs().sum() for weight in weights])
    everywhere = [torch.zeros_like(sums) for _ in range(2)]
    dist.all_gather(everywhere, sums)
    assert torch.equal(*everywhere) and (sums > 0).sum() > 5, "the processes have different teachers"

    whole, sharded = gradients(False), gradients(True)
    assert whole.keys() == sharded.keys() and len(whole) > 10
    for name, gradient in whole.items():
        assert torch.allclose(gradient, sharded[name], rtol=1e-7, atol=1e-10), name
    key = next(name for name in whole if "layers.1.self_attn.k_proj" in name)
    assert whole[key].abs().max() > 1e-6
    print("sharded", dist.get_rank())


@pytest.fixture
def encoder_without_pooler(tmp_path):
    """As most pretrained encoders are published; FSDP's loading leaves what a checkpoint lacks on no device."""
    model, tokenizer = build_encoder()
    model.pooler = None
    model.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.mark.skipif(
    not hasattr(torch.cpu.current_stream(), "record_event"), reason="this version of torch shards on no CPU (FSDP2)"
)
def test_teacher_is_whole_and_gradients_are_exact(encoder_without_pooler):
    # As `accelerate launch` sets them for fsdp2.yaml.
    settings = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    printed = forked_ranks(2, lambda: check_teacher_and_gradients(str(encoder_without_pooler)), **settings)
    assert ["sharded 0" in printed[0], "sharded 1" in printed[1]] == [True, True]


def test_models_beside_the_trained_one_are_loaded_whole(monkeypatch):
    """Teachers, scorers and saved models that are read back: ZeRO-3 would shard them, FSDP leave them empty."""
    from transformers.integrations import deepspeed

    class Config:
        def is_zero3(self):
            return True

    class Loader:
        @staticmethod
        def from_pretrained(name, **options):
            seen.append((deepspeed.is_deepspeed_zero3_enabled(), os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING")))
            return name, {"missing_keys": [], "mismatched_keys": [], "unexpected_keys": []}

    seen, config = [], Config()
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    deepspeed.set_hf_deepspeed_config(config)
    try:
        assert load_with_report(Loader, "folder")[0] == "folder"
        Loader.from_pretrained("folder")
    finally:
        deepspeed.unset_hf_deepspeed_config()
    assert seen == [(False, None), (True, "true")]


def test_loading_whole_leaves_the_settings_as_they_were(monkeypatch):
    from transformers.integrations import deepspeed

    class Config:
        def is_zero3(self):
            return True

    config = Config()
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    deepspeed.set_hf_deepspeed_config(config)
    try:
        with pytest.raises(RuntimeError), load_unsharded():
            assert not deepspeed.is_deepspeed_zero3_enabled()
            assert "FSDP_CPU_RAM_EFFICIENT_LOADING" not in os.environ
            raise RuntimeError
        assert deepspeed.is_deepspeed_zero3_enabled()
        assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
    finally:
        deepspeed.unset_hf_deepspeed_config()
