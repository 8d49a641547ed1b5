"""The trainer: one more loss, with every option, family and way to compute."""

from __future__ import annotations

import pytest
import torch
from support.models import STUDENT_FAMILIES, build_student
from support.training_runs import config, first_step, losses, reward_loss, weights

from hf_interdistill import InteractionDistillationTrainer, InteractionTeacher


def test_alignment_is_learned_and_logged(dataset, tmp_path, tokenizer, fitted_teacher):
    args = config(
        tmp_path, max_steps=60, alignment_weight=5.0, learning_rate=3e-3, eval_strategy="steps", eval_steps=60
    )
    trainer = InteractionDistillationTrainer(
        build_student(),
        args,
        train_dataset=dataset.select(range(8)),
        eval_dataset=dataset.select(range(8)),
        processing_class=tokenizer,
        teacher=fitted_teacher,
    )
    trainer.train()
    alignment = losses(trainer, "interaction/loss")
    assert alignment[-1] < 0.85 * alignment[0]
    for key in ("interaction/intra", "interaction/inter", "interaction/weight", "interaction/teacher_accuracy"):
        assert losses(trainer, key), key
    for key in ("eval_interaction/loss", "eval_interaction/intra", "eval_interaction/inter", "eval_accuracy"):
        assert losses(trainer, key), key
    assert losses(trainer, "interaction/weight")[0] == 5.0
    own = {"accuracy", "margin", "mean_reward", "num_tokens"}
    assert own <= {key for entry in trainer.state.log_history for key in entry}


def test_every_option_changes_the_loss(dataset, tmp_path, tokenizer, fitted_teacher):
    fitted_teacher.interaction_layers = 3
    plain, _ = first_step(tmp_path, dataset, tokenizer, fitted_teacher)
    seen = {plain["loss"]}
    options = [
        {"alignment_weight": 0.7},
        {"alignment_loss": "mse"},
        {"alignment_scope": "intra"},
        {"alignment_scope": "inter"},
        {"alignment_control": "uniform"},
        {"alignment_control": "shuffled"},
        {"student_layers": [0]},
        {"teacher_layers": [0]},
        {"student_layers": [0, -1], "teacher_layers": [0, -1]},
        {"teacher_max_length": 40},
    ]
    for option in options:
        logs, _ = first_step(tmp_path, dataset, tokenizer, fitted_teacher, **option)
        assert logs["loss"] not in seen, option
        seen.add(logs["loss"])
    assert plain["interaction/loss"] == pytest.approx(
        (float(plain["loss"]) - reward_loss(tmp_path, dataset, tokenizer)) / 0.3, rel=1e-3
    )


def test_schedule_moves_the_weight(dataset, tmp_path, tokenizer, fitted_teacher):
    expected = {"linear_decay": [0.4, 0.3, 0.2, 0.1], "warmup": [0.0, 0.4, 0.4, 0.4], "constant": [0.4] * 4}
    for schedule, values in expected.items():
        args = config(tmp_path, max_steps=4, alignment_weight=0.4, alignment_schedule=schedule)
        trainer = InteractionDistillationTrainer(
            build_student(), args, train_dataset=dataset, processing_class=tokenizer, teacher=fitted_teacher
        )
        trainer.train()
        assert losses(trainer, "interaction/weight") == pytest.approx(values)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", STUDENT_FAMILIES)
def test_student_families(dataset, tmp_path, tokenizer, fitted_teacher, family, attention):
    if (family, attention) == ("gemma2", "sdpa"):
        pytest.skip("transformers offers no sdpa for Gemma 2: its scores are capped")
    student = build_student(family, attention)
    args = config(tmp_path, alignment_weight=1.0)
    trainer = InteractionDistillationTrainer(
        student, args, train_dataset=dataset, processing_class=tokenizer, teacher=fitted_teacher
    )
    before = weights(trainer)
    trainer.train()
    assert all(value > 0.01 for value in losses(trainer, "interaction/loss"))
    assert any("att" in name and not torch.equal(value, before[name]) for name, value in weights(trainer).items())


@pytest.mark.parametrize("family", [f for f in STUDENT_FAMILIES if f != "gemma2"])
def test_sdpa_equals_eager(dataset, tmp_path, tokenizer, fitted_teacher, family):
    logs = [
        first_step(tmp_path, dataset, tokenizer, fitted_teacher, student=build_student(family, attention))[0]
        for attention in ("sdpa", "eager")
    ]
    for key in ("loss", "interaction/loss", "grad_norm"):
        assert float(logs[0][key]) == pytest.approx(float(logs[1][key]), rel=2e-4), key


def test_checkpointing_on_equals_off(dataset, tmp_path, tokenizer, fitted_teacher):
    runs = []
    for is_on in (True, False):
        args = config(tmp_path, gradient_checkpointing=is_on, alignment_weight=1.0)
        trainer = InteractionDistillationTrainer(
            build_student(), args, train_dataset=dataset, processing_class=tokenizer, teacher=fitted_teacher
        )
        trainer.train()
        runs.append((losses(trainer), losses(trainer, "grad_norm"), weights(trainer)))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-5) and runs[0][1] == pytest.approx(runs[1][1], rel=1e-4)
    for name, value in runs[0][2].items():
        torch.testing.assert_close(value, runs[1][2][name], rtol=1e-3, atol=1e-4)


def test_accumulation_equals_a_large_batch(dataset, tmp_path, tokenizer, fitted_teacher):
    runs = []
    for batch, accumulation in ((8, 1), (2, 4)):
        args = config(
            tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, alignment_weight=1.0
        )
        trainer = InteractionDistillationTrainer(
            build_student(), args, train_dataset=dataset, processing_class=tokenizer, teacher=fitted_teacher
        )
        trainer.train()
        runs.append((losses(trainer), losses(trainer, "interaction/loss"), weights(trainer)))
    for one, other in zip(runs[0][:2], runs[1][:2], strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    for name, value in runs[0][2].items():
        torch.testing.assert_close(value, runs[1][2][name], rtol=1e-2, atol=2e-3)


def test_bf16_mixed_precision(dataset, tmp_path, tokenizer, fitted_teacher):
    full, _ = first_step(tmp_path, dataset, tokenizer, fitted_teacher, alignment_weight=1.0)
    half, trainer = first_step(tmp_path, dataset, tokenizer, fitted_teacher, alignment_weight=1.0, bf16=True)
    assert trainer.accelerator.mixed_precision == "bf16"
    assert half["interaction/loss"] == pytest.approx(full["interaction/loss"], rel=0.1)
    assert half["interaction/loss"] != full["interaction/loss"]


def test_streaming_dataset(dataset, tmp_path, tokenizer, fitted_teacher):
    length = sorted(len(tokenizer.apply_chat_template(r["prompt"] + r["chosen"])["input_ids"]) for r in dataset)[-3]
    stream = dataset.to_iterable_dataset()
    args = config(tmp_path, max_length=length, max_steps=5)
    trainer = InteractionDistillationTrainer(
        build_student(), args, train_dataset=stream, processing_class=tokenizer, teacher=fitted_teacher
    )
    trainer.train()
    assert len(losses(trainer, "interaction/loss")) == 5
    assert losses(trainer, "interaction/dropped_pairs")[-1] >= 2


def test_lora(dataset, tmp_path, tokenizer, fitted_teacher):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["score"])
    trainer = InteractionDistillationTrainer(
        build_student(),
        config(tmp_path, alignment_weight=1.0),
        train_dataset=dataset,
        processing_class=tokenizer,
        teacher=fitted_teacher,
        peft_config=lora,
    )
    before = weights(trainer)
    trainer.train()
    changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert changed and all("lora" in name or "score" in name for name in changed)

    above = peft.LoraConfig(
        task_type="SEQ_CLS", target_modules=["q_proj"], layers_to_transform=[2], modules_to_save=["score"]
    )
    with pytest.raises(ValueError, match="trains nothing at or below layer 0"):
        InteractionDistillationTrainer(
            build_student(),
            config(tmp_path, student_layers=[0]),
            train_dataset=dataset,
            processing_class=tokenizer,
            teacher=fitted_teacher,
            peft_config=above,
        )


def test_teacher_is_frozen_and_in_no_checkpoint(dataset, tmp_path, tokenizer, fitted_teacher):
    args = config(tmp_path, save_strategy="steps", save_steps=3)
    trainer = InteractionDistillationTrainer(
        build_student(), args, train_dataset=dataset, processing_class=tokenizer, teacher=fitted_teacher
    )
    before = [p.clone() for p in fitted_teacher.network.parameters()]
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, fitted_teacher.network.parameters(), strict=True))
    assert not fitted_teacher.network.training
    own = {id(p) for p in trainer.model.parameters()}
    assert {id(p) for group in trainer.optimizer.param_groups for p in group["params"]} <= own
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "rm" / "checkpoint-3" / "model.safetensors")
    assert set(saved) <= set(trainer.model.state_dict())
    card = (tmp_path / "rm" / "README.md").read_text()
    assert "2508.02618" in card and "0.700" in card and "alignment_weight" in card


def test_teacher_by_path_and_model_by_path(dataset, tmp_path, tokenizer, fitted_teacher):
    fitted_teacher.save_pretrained(str(tmp_path / "teacher"))
    build_student().save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    runs = []
    for teacher, model in ((fitted_teacher, build_student()), (None, str(tmp_path / "student"))):
        args = config(tmp_path, max_steps=1, teacher_model=None if teacher else str(tmp_path / "teacher"))
        trainer = InteractionDistillationTrainer(
            model, args, train_dataset=dataset, processing_class=tokenizer if teacher else None, teacher=teacher
        )
        trainer.train()
        runs.append(losses(trainer))
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)
    assert InteractionTeacher.from_pretrained(str(tmp_path / "teacher")).metrics == fitted_teacher.metrics
