"""What goes wrong around the trainer: broken runs, bad data, bad arguments."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from datasets import Dataset
from support.models import STUDENT_FAMILIES, build_student
from support.training_runs import COMMON, config, first_step, losses, weights
from trl import RewardConfig

from hf_interdistill import InteractionDistillationTrainer


def test_resumed_run_equals_an_unbroken_one(dataset, tmp_path, tokenizer, fitted_teacher):
    def trainer(folder):
        args = config(folder, max_steps=12, save_strategy="steps", save_steps=4, alignment_weight=1.0)  # two epochs
        return InteractionDistillationTrainer(
            build_student(), args, train_dataset=dataset, processing_class=tokenizer, teacher=fitted_teacher
        )

    whole = trainer(tmp_path / "whole")
    whole.train()
    for step in (4, 8):
        resumed = trainer(tmp_path / "whole")
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "rm" / f"checkpoint-{step}"))
        for name, value in weights(whole).items():
            assert torch.equal(value, weights(resumed)[name]), name


def test_nonfinite_loss_stops_with_the_rows_and_a_checkpoint(dataset, tmp_path, tokenizer, fitted_teacher):
    class Poison:
        """A batch whose margin is NaN at the third step."""

        def __init__(self, inner):
            self.inner, self.batches = inner, 0

        def __call__(self, examples):
            batch = self.inner(examples)
            self.batches += trainer.model.training  # the untrained student is measured first
            if self.batches == 3:
                batch["margin"] = torch.full((len(examples),), float("nan"))
            return batch

    trainer = InteractionDistillationTrainer(
        build_student(),
        config(tmp_path, max_steps=5),
        train_dataset=dataset,
        processing_class=tokenizer,
        teacher=fitted_teacher,
    )
    trainer.data_collator = Poison(trainer.data_collator)
    with pytest.raises(FloatingPointError, match="not finite at step 2"):
        trainer.train()
    note = json.loads((tmp_path / "rm" / "nonfinite_loss.json").read_text())
    assert note["global_step"] == 2 and len(note["pair_index"]) == 4
    assert (tmp_path / "rm" / "checkpoint-2" / "optimizer.pt").exists()


def test_bad_columns_are_named(dataset, tmp_path, tokenizer, fitted_teacher):
    def build(data, **changes):
        return InteractionDistillationTrainer(
            build_student(),
            config(tmp_path, **changes),
            train_dataset=data,
            processing_class=tokenizer,
            teacher=fitted_teacher,
        )

    with pytest.raises(ValueError, match="is `choosen` meant as `chosen`"):
        build(dataset.rename_column("chosen", "choosen"))
    with pytest.raises(ValueError, match="no column `rejected`"):
        build(dataset.remove_columns("rejected"), alignment_weight=0)
    with pytest.raises(ValueError, match="without its text"):
        build(Dataset.from_dict({"chosen_ids": [[1, 5]], "rejected_ids": [[1, 6]]}))
    with pytest.raises(ValueError, match="Row 0: Column `chosen` holds 3"):
        build(Dataset.from_dict({"prompt": ["a"], "chosen": [3], "rejected": [4]}))
    with pytest.raises(ValueError, match="mix text and messages"):
        build(
            Dataset.from_dict({"prompt": ["a"], "chosen": [dataset[0]["chosen"]], "rejected": [dataset[0]["chosen"]]})
        )
    with pytest.raises(ValueError, match="No pair of the train dataset is left"):
        build(dataset, max_length=3)


def test_odd_pairs_are_counted(dataset, tmp_path, tokenizer, fitted_teacher, caplog):
    rows = dataset.to_list()
    rows[0]["chosen"][0]["content"] = ""
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[2] = {key: [{"role": "user", "content": " "}] for key in ("prompt", "chosen", "rejected")}
    rows[2]["rejected"] *= 2
    with caplog.at_level(logging.WARNING):
        trainer = InteractionDistillationTrainer(
            build_student(),
            config(tmp_path, max_length=300, max_steps=12),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            teacher=fitted_teacher,
        )
    kept = len(trainer.train_dataset)
    assert f"1 of {len(rows)} pairs were dropped (rows 1): chosen and rejected are the same token ids" in caplog.text
    assert f"2 of {kept} pairs have an empty response" in caplog.text
    assert f"1 of {kept} pairs have no unit" in caplog.text
    assert trainer.train_dataset["pair_index"][:3] == [0, 2, 3]
    trainer.train()
    assert all(value == value for value in losses(trainer))


def test_dropped_pairs_are_counted(dataset, tmp_path, tokenizer, fitted_teacher, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = InteractionDistillationTrainer(
            build_student(),
            config(tmp_path, max_length=120),
            train_dataset=dataset,
            processing_class=tokenizer,
            teacher=fitted_teacher,
        )
    dropped = len(dataset) - len(trainer.train_dataset)
    assert dropped > 0 and f"{dropped} of 24 pairs are longer than max_length=120" in caplog.text


def test_bad_arguments_are_explained(dataset, tmp_path, tokenizer, fitted_teacher):
    def build(teacher=fitted_teacher, model=None, **changes):
        return InteractionDistillationTrainer(
            model or build_student(),
            config(tmp_path, **changes),
            train_dataset=dataset,
            processing_class=tokenizer,
            teacher=teacher,
        )

    with pytest.raises(ValueError, match="there is no teacher"):
        build(teacher=None)
    with pytest.raises(ValueError, match="asks for layer 7, but the model has 3 layers"):
        build(student_layers=[7])
    with pytest.raises(ValueError, match="`teacher_layers` asks for layer -4"):
        build(teacher_layers=[-4])
    with pytest.raises(ValueError, match="reads at most 512"):
        build(teacher_max_length=2000)
    with pytest.raises(ValueError, match="same number of layers"):
        build(student_layers=[0, 1])
    with pytest.raises(ValueError, match="must be one of kl, mse"):
        build(alignment_loss="js")
    with pytest.raises(ValueError, match="`alignment_weight` is -1"):
        build(alignment_weight=-1)
    with pytest.raises(ValueError, match="reentrant checkpointing"):
        build(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(TypeError, match="InteractionDistillationConfig"):
        InteractionDistillationTrainer(
            build_student(),
            RewardConfig(output_dir=str(tmp_path), **COMMON),
            train_dataset=dataset,
            processing_class=tokenizer,
            teacher=fitted_teacher,
        )
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="cannot be written"):
        build(output_dir=str(tmp_path / "file" / "rm"))


def test_layer_without_softmax_attention_is_refused(dataset, tmp_path, tokenizer, fitted_teacher):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    shape = {**STUDENT_FAMILIES["llama"], "num_hidden_layers": 4}
    config_ = AutoConfig.for_model(
        "jamba",
        num_labels=1,
        **shape,
        attn_layer_period=4,
        attn_layer_offset=1,
        expert_layer_period=100,
        num_experts=1,
        num_experts_per_tok=1,
        use_mamba_kernels=False,
        mamba_d_state=4,
        mamba_dt_rank=4,
    )
    model = AutoModelForSequenceClassification.from_config(config_)
    with pytest.raises(ValueError, match=r"Layer 3 did no softmax attention.*\[1\]"):
        first_step(tmp_path, dataset, tokenizer, fitted_teacher, student=model, gradient_checkpointing=False)


def test_slow_tokenizer_is_refused(dataset, tmp_path, fitted_teacher, tokenizer):
    class Slow:
        is_fast = False

        def __getattr__(self, name):
            return getattr(tokenizer, name)

    from hf_interdistill.interaction.data.preference_tokenizer import PreferenceTokenizer

    with pytest.raises(ValueError, match=r"student's tokenizer .Slow. is a slow one"):
        PreferenceTokenizer(Slow(), fitted_teacher.tokenizer)
    with pytest.raises(ValueError, match=r"teacher's tokenizer .Slow. is a slow one"):
        PreferenceTokenizer(tokenizer, Slow())


def test_untrained_teacher_is_a_loud_warning(dataset, tmp_path, tokenizer, teacher, caplog):
    with caplog.at_level(logging.WARNING):
        first_step(tmp_path, dataset, tokenizer, teacher)
    assert "WAS NEVER TRAINED ON PREFERENCES" in caplog.text
    teacher.metrics = {"accuracy": 0.52, "standard_error": 0.03, "pairs": 300, "is_better_than_chance": False}
    with caplog.at_level(logging.WARNING):
        first_step(tmp_path, dataset, tokenizer, teacher)
    assert "MAY BE NO BETTER THAN CHANCE" in caplog.text
