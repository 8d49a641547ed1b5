"""QLoRA: a student in 4 bits, aligned through its LoRA weights; on a CPU, where bitsandbytes has 4-bit layers too."""

from __future__ import annotations

import pytest
import torch
from support.models import build_student
from support.training_runs import config, losses, weights
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from hf_interdistill import InteractionDistillationTrainer

peft = pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")

FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}


@pytest.fixture
def folder(tmp_path, tokenizer) -> str:
    path = str(tmp_path / "student")
    build_student().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def lora():
    return peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["score"])


def dequantized(folder: str):
    """The student in full precision, each 4-bit weight replaced by the numbers that it stands for."""
    quantized = AutoModelForSequenceClassification.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(**FOUR_BITS)
    )
    plain = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    layers = {
        name: module for name, module in quantized.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)
    }
    assert len(layers) == 7 * plain.config.num_hidden_layers
    for name, module in layers.items():
        numbers = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        plain.get_submodule(name).weight.data.copy_(numbers)
    return plain


@pytest.mark.parametrize("is_shared", [True, False])
def test_qlora_trains_as_the_model_that_its_bits_stand_for(folder, tmp_path, dataset, fitted_teacher, is_shared):
    def train(model, **changes):
        # TRL keeps what is trained on 4 bits in bfloat16, and so needs autocast.
        args = config(tmp_path, alignment_weight=1.0, share_prompt=is_shared, bf16=True, **changes)
        trainer = InteractionDistillationTrainer(
            model, args, train_dataset=dataset, teacher=fitted_teacher, peft_config=lora()
        )
        before = weights(trainer)
        trainer.train()
        return trainer, before

    quantization = {"quantization_config": BitsAndBytesConfig(**FOUR_BITS), "dtype": torch.float32}
    trainer, before = train(folder, model_init_kwargs=quantization)
    after = weights(trainer)
    # So does the check of shared prompts, where bitsandbytes packs layers that run in evaluation mode.
    packed = [name for name, value in after.items() if value.dtype == torch.uint8]
    assert packed and all(torch.equal(after[name], before[name]) for name in packed)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and all("lora" in name or "score" in name for name in changed)
    assert any("lora" in name and "q_proj" in name for name in changed)

    plain, _ = train(dequantized(folder))
    for key, tolerance in (("loss", 1e-3), ("interaction/loss", 1e-4)):  # 4 bits themselves change them more
        own, expected = losses(trainer, key), losses(plain, key)
        assert own == pytest.approx(expected, rel=tolerance), key
