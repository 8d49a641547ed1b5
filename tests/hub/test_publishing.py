"""What the trainer pushes to a Hub on loopback: its card, checkpoints and the final model."""

from __future__ import annotations

import logging
import time

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load
from support.hub import FORBIDDEN, TOKEN
from support.loopback_hub import Fault
from support.models import build_student
from support.tokenizers import tokenizer_of

from hf_interdistill import InteractionDistillationConfig, InteractionDistillationTrainer
from hf_interdistill.hub.push import HubPushError
from hf_interdistill.interaction import publishing

EXPECTED = {
    *(".gitattributes", "README.md", "config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
}


class SlowFilter(logging.Filter):
    """Delays failures, as a busy machine may, so that what does not wait for their report comes before it."""

    def filter(self, record):
        if "was not pushed" in record.getMessage():
            time.sleep(0.5)
        return True


def config(tmp_path, **changes) -> InteractionDistillationConfig:
    values = {
        "output_dir": str(tmp_path / "rm"),
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "steps",
        "save_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return InteractionDistillationConfig(**{**values, **changes})


def trainer_of(args, dataset, teacher, model=None, **options):
    return InteractionDistillationTrainer(
        build_student() if model is None else model,
        args,
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=tokenizer_of("bytes") if model is None else None,
        teacher=teacher,
        **options,
    )


def test_the_final_model_is_pushed_without_other_files(hub, tmp_path, dataset, fitted_teacher):
    trainer = trainer_of(config(tmp_path), dataset, fitted_teacher)
    trainer.train()
    trainer.evaluate()
    commit = trainer.push_to_hub(dataset_name="user/preferences", tags="mine")
    assert commit.commit_url.startswith(f"{hub.url}/user/rm/commit/") and not trainer.model.training
    files = hub.files("user/rm")
    assert set(files) == {*EXPECTED, "maps.png"} and files["maps.png"].startswith(b"\x89PNG")
    assert (tmp_path / "rm" / "training_args.bin").exists() and (tmp_path / "rm" / "checkpoint-2").exists()
    weights = load(files["model.safetensors"])
    assert set(weights) == set(trainer.model.state_dict())
    assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())

    card = ModelCard(files["README.md"].decode())
    assert {"interaction-distillation", "reward-trainer", "conversational", "mine"} <= set(card.data.tags)
    (result,) = card.data.eval_results
    accuracy = next(
        entry["eval_accuracy"] for entry in reversed(trainer.state.log_history) if "eval_accuracy" in entry
    )
    assert result.metric_value == round(accuracy, 4) and card.data.metrics == ["accuracy"]
    assert (result.dataset_type, card.data.datasets) == ("user/preferences", ["user/preferences"])
    for part in (
        "2508.02618",
        "0.700",
        "devlin2018bert",
        "vonwerra2020trl",
        "(maps.png)",
        "| `alignment_weight` | 0.3 |",
    ):
        assert part in card.text, part
    start, end = trainer.explained_share()
    assert f"explains {end:.3f} (1 - KL" in card.text and f"{start:.3f} before training" in card.text
    assert "24 pairs for training, 24 pairs for evaluation, as messages" in card.text
    assert "| `optimizer steps` | 2 |" in card.text and 'from_pretrained("user/rm"' in card.text


def test_checkpoints_are_pushed_without_other_files(hub, tmp_path, dataset, fitted_teacher):
    args = config(tmp_path, push_to_hub=True, hub_strategy="every_save", hub_always_push=True, hub_private_repo=True)
    trainer = trainer_of(args, dataset, fitted_teacher)
    assert hub.repositories["user/rm"].is_private
    trainer.train()
    commits = hub.repositories["user/rm"].branches["main"]
    assert len(commits) == 3  # its creation, step 1, step 2
    saved = [(tmp_path / "rm" / f"checkpoint-{step}" / "model.safetensors").read_bytes() for step in (1, 2)]
    assert [files["model.safetensors"][1] for _, files in commits[1:]] == saved and saved[0] != saved[1]
    assert all(set(files) == EXPECTED for _, files in commits[1:])
    assert "| `optimizer steps` | 1 |" in commits[1][1]["README.md"][1].decode()


def test_a_failed_push_is_reported_and_training_continues(hub, tmp_path, dataset, fitted_teacher, caplog):
    trainer = trainer_of(config(tmp_path, push_to_hub=True), dataset, fitted_teacher)
    hub.faults = [Fault("POST", "/commit/", "status", 403)]
    with caplog.at_level(logging.ERROR):
        trainer.train()
        trainer._finish_current_push()
    assert trainer.state.global_step == 2
    (record,) = [record for record in caplog.records if "was not pushed; training continues" in record.message]
    assert "status 403" in record.message and TOKEN not in caplog.text


def test_a_failed_push_has_been_reported_when_it_has_been_waited_for(
    hub, tmp_path, dataset, fitted_teacher, caplog, monkeypatch
):
    monkeypatch.setattr(publishing.logger, "filters", [SlowFilter()])
    trainer = trainer_of(config(tmp_path, push_to_hub=True), dataset, fitted_teacher)
    hub.faults = [Fault("POST", "/commit/", "status", 403)]
    with caplog.at_level(logging.ERROR):
        trainer.train()
        trainer._finish_current_push()
        assert "was not pushed; training continues" in caplog.text


def test_without_a_teacher_the_card_claims_none(hub, tmp_path, dataset):
    trainer = trainer_of(config(tmp_path, alignment_weight=0.0, save_strategy="no"), dataset, None)
    trainer.train()
    future = trainer.push_to_hub(blocking=False, revision="baseline", commit_message="Plain")
    assert future.result().commit_message == "Plain"
    assert set(hub.files("user/rm", "baseline")) == EXPECTED
    card = ModelCard(hub.files("user/rm", "baseline")["README.md"].decode())
    assert "interaction-distillation" not in card.data.tags and "2508.02618" not in card.text
    assert "without a teacher" in card.text and "the run had no evaluation" in card.text


def test_refusals_come_before_training(hub, tmp_path, dataset, fitted_teacher):
    with pytest.raises(ValueError, match="`hub_strategy` is 'checkpoint', which uploads optimizer"):
        config(tmp_path, push_to_hub=True, hub_strategy="checkpoint")
    with pytest.raises(HubPushError, match="status 401") as error:
        trainer_of(config(tmp_path, push_to_hub=True, hub_token="hf_" + "x" * 34), dataset, fitted_teacher)
    assert "hf_xxx" not in str(error.value)


def test_adapters_are_pushed_with_their_head(hub, tmp_path, dataset, fitted_teacher, monkeypatch):
    peft = pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    build_student().save_pretrained("base")
    tokenizer_of("bytes").save_pretrained("base")
    lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], modules_to_save=["score"])
    with pytest.raises(ValueError, match=r"The adapter is trained on the folder .*which nobody else has"):
        trainer_of(
            config(tmp_path, push_to_hub=True), dataset, fitted_teacher, str(tmp_path / "base"), peft_config=lora
        )
    trainer = trainer_of(config(tmp_path), dataset, fitted_teacher, "base", peft_config=lora)
    trainer.train()
    trainer.model.active_peft_config.base_model_name_or_path = "user/base"  # as if trained on the Hub's
    trainer.push_to_hub()
    files = hub.files("user/rm")
    assert set(files) == EXPECTED - {"config.json", "model.safetensors"} | {
        *("adapter_config.json", "adapter_model.safetensors", "maps.png")
    }
    assert not [name for name in files if name.endswith(FORBIDDEN)]
    assert any("score" in name for name in load(files["adapter_model.safetensors"]))
    card = ModelCard(files["README.md"].decode())
    assert (card.data.library_name, card.data.base_model) == ("peft", "user/base") and "lora" in card.data.tags
