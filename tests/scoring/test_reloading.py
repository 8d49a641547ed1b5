"""What is saved reloads to the same tokens and rewards, or saving ends with an error that says how they differ."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import save_file
from support.hub import language_model, save_adapter
from support.models import build_student, read_weights
from support.tokenizers import tokenizer_of
from support.training_runs import config
from tokenizers import processors
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from hf_interdistill import InteractionDistillationTrainer, RewardScorer
from hf_interdistill.hub import merging
from hf_interdistill.hub.files import stage_model
from hf_interdistill.scoring.reloading import require_same_when_reloaded
from hf_interdistill.scoring.serving import export_reward_model

FULL, ADAPTER = "model.safetensors", "adapter_model.safetensors"


class ScaledLlama(LlamaForSequenceClassification):
    """A class of the user's own, which no config names."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2 + 1
        return output


def own_class():
    model = ScaledLlama(build_student().config)
    model.load_state_dict(build_student().state_dict())
    return model


def trainer_of(model, tokenizer, dataset, tmp_path, peft_config=None, **changes):
    args = config(tmp_path, alignment_weight=0, max_steps=1, **changes)
    return InteractionDistillationTrainer(
        model, args, train_dataset=dataset, processing_class=tokenizer, peft_config=peft_config
    )


def save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_is_the_one_in_memory(dtype, tokenizer, tmp_path):
    model = build_student().to(dtype)
    require_same_when_reloaded(model, tokenizer, save(model, tokenizer, tmp_path / "rm"))


def test_a_class_that_no_config_names_gives_other_rewards(tokenizer, dataset, tmp_path):
    trainer = trainer_of(own_class(), tokenizer, dataset, tmp_path)
    trainer.train()
    message = (
        r"rm gives the rewards \[.*\] when it is loaded, but the one in memory \[.*\] \(ScaledLlama in memory, Llama"
    )
    with pytest.raises(ValueError, match=message):
        trainer.save_model()
    assert (tmp_path / "rm" / FULL).exists()  # nothing is lost


def test_checkpoints_are_not_read_back(tokenizer, dataset, tmp_path):
    trainer_of(own_class(), tokenizer, dataset, tmp_path, save_strategy="steps", save_steps=1).train()
    assert (tmp_path / "rm" / "checkpoint-1" / FULL).exists()


def test_a_tokenizer_that_save_pretrained_does_not_store(tokenizer, tmp_path):
    model = build_student()
    folder = save(model, tokenizer, tmp_path / "rm")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    with pytest.raises(ValueError, match=r"rm reads 'Yes.' as the ids \[.*\], but the one in memory as \[1, "):
        require_same_when_reloaded(model, tokenizer, folder)
    stored = tokenizer_of("bytes")
    stored.chat_template = "{{ messages }}"
    with pytest.raises(ValueError, match=r"rm has another `chat_template` than the one in memory"):
        require_same_when_reloaded(model, stored, folder)


def test_weights_that_did_not_reach_the_disk(tokenizer, tmp_path):
    model = build_student()
    folder = save(model, tokenizer, tmp_path / "rm")
    stored = read_weights(tmp_path / "rm" / FULL)
    lost = {key: value for key, value in stored.items() if "layers.2" not in key}
    save_file(lost, tmp_path / "rm" / FULL, metadata={"format": "pt"})
    for is_sharded in (False, True):
        with pytest.raises(ValueError, match=r"rm holds only a part of its model.*layers.2"):
            require_same_when_reloaded(model, tokenizer, folder, is_sharded=is_sharded)
    stored["model.layers.2.mlp.up_proj.weight"] *= -3
    save_file(stored, tmp_path / "rm" / FULL, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="rm gives the rewards"):
        require_same_when_reloaded(model, tokenizer, folder)
    require_same_when_reloaded(model, tokenizer, folder, is_sharded=True)  # its rewards are on other processes


def test_an_adapter_on_another_base_than_it_names(tokenizer, tmp_path, caplog):
    import peft

    base = language_model(tmp_path / "base")
    lora = {"task_type": "SEQ_CLS", "target_modules": ["q_proj"], "init_lora_weights": False}
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model = peft.get_peft_model(model, peft.LoraConfig(**lora))
    require_same_when_reloaded(model, tokenizer, save(model, tokenizer, tmp_path / "rm"))
    # On a merged model, whose weights are nowhere: it still names the model that it was merged into.
    again = peft.get_peft_model(model.merge_and_unload(), peft.LoraConfig(**lora))
    with pytest.raises(
        ValueError, match=r"again gives the rewards .*an adapter needs exactly the base model that it names"
    ):
        require_same_when_reloaded(again, tokenizer, save(again, tokenizer, tmp_path / "again"))
    in_memory = peft.get_peft_model(build_student(), peft.LoraConfig(**lora))
    with caplog.at_level(logging.WARNING):
        require_same_when_reloaded(in_memory, tokenizer, save(in_memory, tokenizer, tmp_path / "nowhere"))
    assert "trained on a model that was made in memory, so nobody can load it" in caplog.text


def test_a_trained_adapter_of_embeddings_is_read_back(tokenizer, dataset, tmp_path):
    import peft

    base = language_model(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["embed_tokens", "q_proj"])
    trainer = trainer_of(model, tokenizer, dataset, tmp_path, peft_config=lora, learning_rate=0.01)
    trainer.train()
    trainer.save_model()
    saved = read_weights(tmp_path / "rm" / ADAPTER)
    assert saved["base_model.model.model.embed_tokens.lora_embedding_B"].abs().max() > 0
    expected = RewardScorer(trainer.model, tokenizer)([None, None], ["hello", "a longer text"])
    found = RewardScorer.from_pretrained(str(tmp_path / "rm"))([None, None], ["hello", "a longer text"])
    assert found == pytest.approx(expected, abs=1e-5)


def test_exports_and_merged_models_are_read_back(tokenizer, tmp_path, monkeypatch):
    adapter = save_adapter(tmp_path / "adapter", tmp_path / "base")
    texts = ["hello", "a longer text"]
    expected = RewardScorer.from_pretrained(str(adapter))([None, None], texts)
    export_reward_model(RewardScorer.from_pretrained(str(adapter)), str(tmp_path / "served"))
    assert RewardScorer.from_pretrained(str(tmp_path / "served"))([None, None], texts) == pytest.approx(
        expected, abs=1e-5
    )
    with pytest.raises(ValueError, match="served gives the rewards"):
        export_reward_model(RewardScorer(own_class(), tokenizer), str(tmp_path / "served"))
    seen = []
    monkeypatch.setattr(merging, "require_same_when_reloaded", lambda model, _, folder: seen.append(folder))
    with merging.merged_model(adapter) as folder:
        assert seen == [str(folder)]


def test_a_part_of_a_model_is_not_pushed(tokenizer, tmp_path, caplog):
    save(build_student(), tokenizer, tmp_path / "rm")
    stage_model(tmp_path / "rm", "user/rm")
    stored = read_weights(tmp_path / "rm" / FULL)
    lost = {key: value for key, value in stored.items() if "layers.0" not in key}
    save_file(lost, tmp_path / "rm" / FULL, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"rm holds only a part of its model.*layers.0") as error:
        stage_model(tmp_path / "rm", "user/rm")
    assert str(tmp_path) not in str(error.value)
    adapter = save_adapter(tmp_path / "adapter", tmp_path / "base")
    stage_model(adapter, "user/rm", base_model="user/base")
    assert "was not checked" not in caplog.text
    stored = read_weights(adapter / ADAPTER)
    save_file({key: value for key, value in stored.items() if "layers.1" not in key}, adapter / ADAPTER)
    with pytest.raises(ValueError, match=r"adapter holds only a part of its model.*layers.1.*lora_A"):
        stage_model(adapter, "user/rm", base_model="user/base")
