"""A run does not resume from a checkpoint that has only a part of the weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from support.models import build_student, read_weights
from support.training_runs import as_format, config, weights
from transformers import AutoConfig, AutoModelForSequenceClassification

from hf_interdistill import InteractionDistillationTrainer
from hf_interdistill.training.checkpoints import CheckpointError


@pytest.fixture
def trainer_of(dataset, tmp_path, tokenizer):
    def trainer_of(model=None, dataset=dataset, **changes):
        args = config(tmp_path, alignment_weight=0, max_steps=2, save_strategy="steps", save_steps=1, **changes)
        return InteractionDistillationTrainer(
            model or build_student(), args, train_dataset=dataset, processing_class=tokenizer
        )

    return trainer_of


def drop(path, part: str) -> None:
    stored = read_weights(path)
    kept = {key: value for key, value in stored.items() if part not in key}
    assert len(kept) < len(stored)
    save_file(kept, path, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_a_checkpoint_without_some_weights_is_refused(kind, trainer_of, tmp_path):
    def model():
        if kind == "full":
            return build_student()
        peft = pytest.importorskip("peft")
        return peft.get_peft_model(build_student(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"]))

    trainer_of(model()).train()
    checkpoint = tmp_path / "rm" / "checkpoint-1"
    trainer_of(model()).train(resume_from_checkpoint=str(checkpoint))
    file = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    drop(checkpoint / file, "layers.1.")
    with pytest.raises(CheckpointError, match=r"checkpoint-1 lacks weights of the model: .*layers.1.*another che"):
        trainer_of(model()).train(resume_from_checkpoint=str(checkpoint))


def test_tied_weights_are_no_missing_ones(trainer_of, rows, tmp_path):
    data = as_format(rows, "standard explicit")  # T5 reads the reward at EOS
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 900}

    def model():
        torch.manual_seed(0)
        settings = AutoConfig.for_model(
            "t5", num_labels=1, pad_token_id=3, eos_token_id=2, decoder_start_token_id=3, **shape
        )
        return AutoModelForSequenceClassification.from_config(settings)

    def train(checkpoint=None):
        trainer = trainer_of(model(), data, gradient_checkpointing=False)
        trainer.train(resume_from_checkpoint=checkpoint)
        return weights(trainer)

    whole = train()
    stored = read_weights(tmp_path / "rm" / "checkpoint-1" / "model.safetensors")
    assert len(stored) < len(whole)
    resumed = train(str(tmp_path / "rm" / "checkpoint-1"))
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
