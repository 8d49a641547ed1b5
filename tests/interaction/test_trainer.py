"""The trainer: a drop-in for `RewardTrainer`, and one more loss."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from conftest import STUDENT_FAMILIES, build_student, tokenizer_of
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from hf_interdistill import InteractionDistillationConfig, InteractionDistillationTrainer, InteractionTeacher

COMMON = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "max_steps": 3,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def config(tmp_path, **changes) -> InteractionDistillationConfig:
    return InteractionDistillationConfig(**{"output_dir": str(tmp_path / "rm"), **COMMON, **changes})


def losses(trainer, key="loss") -> list[float]:
    return [float(entry[key]) for entry in trainer.state.log_history if key in entry]


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def as_format(rows, kind: str) -> Dataset:
    """The same preferences in another of TRL's formats."""
    rows = rows[:16]

    def text(messages):
        return " ".join(message["content"] for message in messages)

    if kind == "conversational explicit":
        rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
    elif kind == "conversational implicit":
        rows = [{key: row["prompt"] + row[key] for key in ("chosen", "rejected")} for row in rows]
    elif kind == "standard explicit":
        rows = [
            {key: text(row[key]) + " " * (key == "prompt") for key in ("prompt", "chosen", "rejected")} for row in rows
        ]
    elif kind == "standard implicit":
        rows = [{key: text(row["prompt"]) + " " + text(row[key]) for key in ("chosen", "rejected")} for row in rows]
    return Dataset.from_list(rows)


FORMATS = ["conversational explicit", "conversational implicit", "standard explicit", "standard implicit"]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["bytes", "metaspace"])
def test_tokens_are_those_of_reward_trainer_in_every_format(rows, tmp_path, fitted_teacher, kind, name):
    data = as_format(rows, kind)
    ours = InteractionDistillationTrainer(
        build_student(),
        config(tmp_path),
        train_dataset=data,
        processing_class=tokenizer_of(name),
        teacher=fitted_teacher,
    )
    theirs = RewardTrainer(
        build_student(),
        RewardConfig(output_dir=str(tmp_path / "trl"), **COMMON),
        train_dataset=data,
        processing_class=tokenizer_of(name),
    )
    for column in ("chosen_ids", "rejected_ids"):
        assert ours.train_dataset[column] == theirs.train_dataset[column]
    assert min(ours.train_dataset["shared_units"]) > 10


@pytest.mark.parametrize("extra", [{}, {"center_rewards_coefficient": 0.01, "gradient_accumulation_steps": 2}])
def test_weight_zero_is_reward_trainer_to_the_last_bit(dataset, tmp_path, tokenizer, extra):
    dataset = dataset.add_column("margin", [0.1 * i for i in range(len(dataset))])
    ours = InteractionDistillationTrainer(
        build_student(),
        config(tmp_path, alignment_weight=0, **extra),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    theirs = RewardTrainer(
        build_student(),
        RewardConfig(output_dir=str(tmp_path / "trl"), **COMMON, **extra),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    ours.train()
    theirs.train()
    assert losses(ours) == losses(theirs)
    for name, value in weights(theirs).items():
        assert torch.equal(value, weights(ours)[name]), name


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


def first_step(tmp_path, dataset, tokenizer, teacher, **changes):
    """Logs of one step, in which weights are still those of the start."""
    student = changes.pop("student", None) or build_student()
    trainer = InteractionDistillationTrainer(
        student,
        config(tmp_path, max_steps=1, **changes),
        train_dataset=dataset,
        processing_class=tokenizer,
        teacher=teacher,
    )
    trainer.train()
    return trainer.state.log_history[0], trainer


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
        (float(plain["loss"]) - reward_loss(tmp_path, dataset, tokenizer)) / 0.1, rel=1e-3
    )


def reward_loss(tmp_path, dataset, tokenizer) -> float:
    trainer = InteractionDistillationTrainer(
        build_student(),
        config(tmp_path, max_steps=1, alignment_weight=0),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer.train()
    return float(trainer.state.log_history[0]["loss"])


def test_margin_and_centering_stay_in_the_loss(dataset, tmp_path, tokenizer, fitted_teacher):
    dataset = dataset.add_column("margin", [0.5] * len(dataset))
    extra = {"center_rewards_coefficient": 0.02}
    theirs = RewardTrainer(
        build_student(),
        RewardConfig(output_dir=str(tmp_path / "trl"), **{**COMMON, "max_steps": 1}, **extra),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    theirs.train()
    ours, _ = first_step(tmp_path, dataset, tokenizer, fitted_teacher, **extra)
    assert float(ours["loss"]) == pytest.approx(losses(theirs)[0] + 0.1 * ours["interaction/loss"], rel=1e-5)


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


def test_several_evaluation_sets_metrics_and_custom_collator(dataset, tmp_path, tokenizer, fitted_teacher):
    from trl.trainer.reward_trainer import DataCollatorForPreference

    def evaluate(make, args, **extra):
        trainer = make(
            build_student(),
            args,
            data_collator=DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id, pad_to_multiple_of=32),
            train_dataset=dataset,
            eval_dataset={"a": dataset.select(range(6)), "b": dataset.select(range(6, 11))},
            processing_class=tokenizer,
            compute_metrics=lambda prediction: {"sum": float(prediction.predictions.sum())},
            **extra,
        )
        return trainer, trainer.evaluate()

    theirs = evaluate(RewardTrainer, RewardConfig(output_dir=str(tmp_path / "trl"), **COMMON))[1]
    trainer, ours = evaluate(InteractionDistillationTrainer, config(tmp_path), teacher=fitted_teacher)
    for key in ("eval_a_sum", "eval_b_sum"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-5)
        assert ours[key] != 0
    assert ours["eval_a_loss"] > theirs["eval_a_loss"]  # one more loss
    again = trainer.evaluate(dataset.select(range(6)))
    assert again["eval_loss"] == pytest.approx(ours["eval_a_loss"])
    assert trainer.evaluate(dataset.select(range(6)))["eval_loss"] == again["eval_loss"]


def test_tools_reach_the_template(rows, tmp_path, fitted_teacher):
    tokenizer = tokenizer_of("bytes")
    tokenizer.chat_template = "{% if tools %}[{{ tools | tojson }}]{% endif %}{{ mark }}" + tokenizer.chat_template
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    data = as_format(rows, "conversational explicit").select(range(4))
    data = data.add_column("tools", [json.dumps(tools)] * 4)
    data = data.add_column("chat_template_kwargs", [{"mark": "zebra"}] * 4)
    ours, theirs = (
        make(build_student(), args, train_dataset=data, processing_class=tokenizer, **extra).train_dataset
        for make, args, extra in (
            (InteractionDistillationTrainer, config(tmp_path), {"teacher": fitted_teacher}),
            (RewardTrainer, RewardConfig(output_dir=str(tmp_path / "trl"), **COMMON), {}),
        )
    )
    assert ours["chosen_ids"] == theirs["chosen_ids"]
    text = tokenizer.decode(ours["chosen_ids"][0])
    assert "zebra" in text and '"add"' in text
    assert min(ours["shared_units"]) > 5


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
    before = [p.clone() for p in fitted_teacher.reader.parameters()]
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, fitted_teacher.reader.parameters(), strict=True))
    assert not fitted_teacher.reader.training
    own = {id(p) for p in trainer.model.parameters()}
    assert {id(p) for group in trainer.optimizer.param_groups for p in group["params"]} <= own
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "rm" / "checkpoint-3" / "model.safetensors")
    assert set(saved) <= set(trainer.model.state_dict())
    card = (tmp_path / "rm" / "README.md").read_text()
    assert "2508.02618" in card and "0.700" in card and "alignment_weight" in card


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
            self.batches += 1
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
    with pytest.raises(ValueError, match="its text is gone"):
        build(Dataset.from_dict({"chosen_ids": [[1, 5]], "rejected_ids": [[1, 6]]}))
    with pytest.raises(ValueError, match="Row 0: Column `chosen` holds 3"):
        build(Dataset.from_dict({"prompt": ["a"], "chosen": [3], "rejected": [4]}))
    with pytest.raises(ValueError, match="mix text and messages"):
        build(
            Dataset.from_dict({"prompt": ["a"], "chosen": [dataset[0]["chosen"]], "rejected": [dataset[0]["chosen"]]})
        )
    with pytest.raises(ValueError, match="No pair of the train dataset is left"):
        build(dataset, max_length=3)


def test_odd_pairs_are_counted_and_trained_on(dataset, tmp_path, tokenizer, fitted_teacher, caplog):
    rows = dataset.to_list()
    rows[0]["chosen"][0]["content"] = ""
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[2] = {key: [{"role": "user", "content": " "}] for key in ("prompt", "chosen", "rejected")}
    with caplog.at_level(logging.WARNING):
        trainer = InteractionDistillationTrainer(
            build_student(),
            config(tmp_path, max_length=300, max_steps=12),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            teacher=fitted_teacher,
        )
    kept = len(trainer.train_dataset)
    assert f"2 of {kept} pairs have an empty response" in caplog.text
    assert f"2 of {kept} pairs have equal chosen and rejected" in caplog.text
    assert f"1 of {kept} pairs have no unit" in caplog.text
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

    from hf_interdistill.interaction.pairs import PairEncoder

    with pytest.raises(ValueError, match=r"student's tokenizer .Slow. is a slow one"):
        PairEncoder(Slow(), fitted_teacher.tokenizer)
    with pytest.raises(ValueError, match=r"teacher's tokenizer .Slow. is a slow one"):
        PairEncoder(tokenizer, Slow())


def test_untrained_teacher_is_a_loud_warning(dataset, tmp_path, tokenizer, teacher, caplog):
    with caplog.at_level(logging.WARNING):
        first_step(tmp_path, dataset, tokenizer, teacher)
    assert "WAS NEVER TRAINED ON PREFERENCES" in caplog.text
    teacher.metrics = {"accuracy": 0.52, "standard_error": 0.03, "pairs": 300, "is_better_than_chance": False}
    with caplog.at_level(logging.WARNING):
        first_step(tmp_path, dataset, tokenizer, teacher)
    assert "IS NO BETTER THAN CHANCE" in caplog.text


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
