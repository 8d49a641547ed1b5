"""What a training starts from: a complete checkpoint, its tokenizer, and an adapter that trains the head."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from safetensors.torch import save_file
from support.hub import language_model
from support.models import build_student, read_weights
from support.tokenizers import tokenizer_of
from support.training_runs import config, weights
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
)
from trl import RewardConfig, RewardTrainer

from hf_interdistill import InteractionDistillationTrainer, RewardScorer
from hf_interdistill.interaction.validation import require_trainable_below

FULL = "model.safetensors"
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture
def base(tmp_path):
    """A language model without a score head, and its tokenizer."""
    folder = language_model(tmp_path / "base")
    tokenizer_of("bytes").save_pretrained(folder)
    return folder


def rewrite(path, change) -> None:
    save_file(change(read_weights(path)), path, metadata={"format": "pt"})


def lora(**changes):
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(**{"task_type": "SEQ_CLS", "r": 4, "target_modules": ["q_proj", "v_proj"], **changes})


@pytest.fixture
def build(dataset, tmp_path):
    def build(model, *, peft_config=None, processing_class=None, **changes):
        return InteractionDistillationTrainer(
            model if not hasattr(model, "is_dir") else str(model),
            config(tmp_path, **{"alignment_weight": 0, "max_steps": 2, **changes}),
            train_dataset=dataset,
            processing_class=processing_class,
            peft_config=peft_config,
        )

    return build


def test_a_head_may_be_missing_and_nothing_else(base, build, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = build(base)
    assert "MISSING" not in caplog.text
    stored = read_weights(base / FULL)
    assert all(torch.equal(value, stored[key]) for key, value in weights(trainer).items() if key != "score.weight")
    rewrite(base / FULL, lambda all_: {key: value for key, value in all_.items() if "layers.1." not in key})
    with pytest.raises(
        ValueError, match=r"base holds only a part of its.*layers.1.*only the score head may be missing"
    ):
        build(base)
    rewrite(base / FULL, lambda all_: {key.replace("model.", "decoder."): value for key, value in stored.items()})
    with pytest.raises(ValueError, match=r"base holds only a part of its model.*model.embed_tokens.weight"):
        build(base)


def test_a_head_for_several_labels_is_replaced(build, base, tmp_path):
    build_student(num_labels=3).save_pretrained(base)
    with pytest.raises(ValueError, match=r"head for another number of outputs.*\(3, 32\).*`model_init_kwargs`"):
        build(base)
    trainer = build(base, model_init_kwargs={"ignore_mismatched_sizes": True})
    assert trainer.model.score.weight.shape == (1, 32)


def test_the_pooler_of_an_encoder_counts_as_its_head(build, tmp_path):
    shape = {**SHAPE, "vocab_size": 900, "pad_token_id": 3}
    BertForMaskedLM(BertConfig(**shape)).save_pretrained(tmp_path / "bert")
    assert not [key for key in read_weights(tmp_path / "bert" / FULL) if "pooler" in key]
    tokenizer_of("bytes").save_pretrained(tmp_path / "bert")
    build(tmp_path / "bert")


def test_the_start_is_that_of_reward_trainer_to_the_last_bit(base, build, dataset, tmp_path):
    from support.training_runs import COMMON

    for adapter in (None, lora()):
        ours = build(base, peft_config=adapter)
        theirs = RewardTrainer(
            str(base),
            RewardConfig(output_dir=str(tmp_path / "trl"), **COMMON),
            train_dataset=dataset,
            peft_config=None if adapter is None else lora(),
        )
        expected = weights(theirs)
        assert all(torch.equal(value, expected[key]) for key, value in weights(ours).items())


def test_a_task_type_is_set_and_a_wrong_one_explained(base, build):
    given = lora(task_type=None)
    trainer = build(base, peft_config=given)
    assert given.task_type is None
    assert trainer.model.peft_config["default"].task_type == "SEQ_CLS"
    assert trainer.model.score.modules_to_save["default"].weight.requires_grad
    with pytest.raises(ValueError, match=r"`peft_config` has `task_type='CAUSAL_LM'`.*Set `task_type='SEQ_CLS'`"):
        build(base, peft_config=lora(task_type="CAUSAL_LM"))


def adapted(base, **changes):
    import peft

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    return peft.get_peft_model(model, lora(**changes))


def frozen_head(base):
    return adapted(base, task_type=None)


def unsaved_head(base):
    model = adapted(base, task_type=None)
    model.base_model.model.score.weight.requires_grad_(True)  # trained, and in no file
    return model


def lora_on_the_head(base):
    return adapted(base, task_type=None, target_modules=["q_proj", "score"])


def loaded_frozen(base):
    import peft

    adapted(base).save_pretrained(base / "adapter")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    return peft.PeftModel.from_pretrained(model, base / "adapter")


def on_an_adapter(base):
    import peft

    return peft.get_peft_model(adapted(base), lora())


def without_a_wrapper(base):
    import peft

    return peft.inject_adapter_in_model(lora(), AutoModelForSequenceClassification.from_pretrained(base, num_labels=1))


def of_another_name(base):
    import peft

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    return peft.get_peft_model(model, lora(), adapter_name="mine")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (frozen_head, r"does not train and save score.weight.*`modules_to_save=\['score'\]`"),
        (unsaved_head, r"does not train and save score.weight.*`modules_to_save=\['score'\]`"),
        (lora_on_the_head, r"does not train and save score.weight.*`modules_to_save=\['score'\]`"),
        (loaded_frozen, r"does not train and save score.weight.*`is_trainable=True`"),
        (on_an_adapter, "on a model that has an adapter already.*Merge the inner one"),
        (without_a_wrapper, "an adapter without PEFT's wrapper"),
        (of_another_name, r"the adapters mine, but PEFT saves only the one called 'default'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_adapters_that_would_be_lost_are_refused_before_training(make, message, base, build):
    with pytest.raises(ValueError, match=message):
        build(make(base), processing_class=tokenizer_of("bytes"))


def test_adapters_made_by_the_user_train_and_are_read_back(base, build, tmp_path):
    trainer = build(adapted(base, task_type=None, modules_to_save=["score"]), processing_class=tokenizer_of("bytes"))
    trainer.train()
    trainer.save_model()
    text = "an answer"
    ids = torch.tensor([tokenizer_of("bytes")(text + "</s>")["input_ids"]])
    with torch.no_grad():
        expected = trainer.model.eval()(ids).logits[0, 0].item()
    assert RewardScorer.from_pretrained(str(tmp_path / "rm"))([None], [text]) == pytest.approx([expected], abs=1e-6)


def test_a_new_pooler_beside_the_head_must_be_saved_too(build, tmp_path):
    """DeBERTa's pooler is new in a classifier, and PEFT saves the classifier alone."""
    shape = {**SHAPE, "vocab_size": 900, "pad_token_id": 3, "type_vocab_size": 0}
    DebertaV2ForMaskedLM(DebertaV2Config(**shape)).save_pretrained(tmp_path / "deberta")
    tokenizer_of("bytes").save_pretrained(tmp_path / "deberta")
    query = ["query_proj"]
    with pytest.raises(ValueError, match=r"save pooler.dense.bias, pooler.dense.*`modules_to_save=\['pooler'\]`"):
        build(tmp_path / "deberta", peft_config=lora(target_modules=query))
    build(tmp_path / "deberta", peft_config=lora(target_modules=query, modules_to_save=["pooler"]))


def test_an_adapter_is_no_model_to_start_from(base, build):
    adapted(base).save_pretrained(base / "adapter")
    tokenizer_of("bytes").save_pretrained(base / "adapter")
    with pytest.raises(ValueError, match=r"adapter holds an adapter.*Start from a full model: merge"):
        build(base / "adapter")


def test_prompt_tuning_is_refused_with_the_rewards_that_show_why(base, build):
    peft = pytest.importorskip("peft")
    message = r"different rewards in a batch and alone: padded on the right, \[.*\] instead of \[.*so use LoRA"
    with pytest.raises(ValueError, match=message):
        build(base, peft_config=peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4))


def test_keys_of_an_adapters_own_are_refused_with_alignment():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(build_student(), peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4))
    with pytest.raises(ValueError, match=r"of the kind PREFIX_TUNING, which puts keys of its own before"):
        require_trainable_below(model, [2])


def test_positions_that_depend_on_the_batch_limit_the_length(build):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    for max_length in (None, 1024):
        with pytest.raises(ValueError, match=r"`rope_type='dynamic'`.*only up to 512.*`max_length=512`"):
            build(build_student(rope_parameters=rope), max_length=max_length, processing_class=tokenizer_of("bytes"))
    build(build_student(rope_parameters=rope), max_length=512, processing_class=tokenizer_of("bytes"))


def test_a_subfolder_is_read_for_model_and_tokenizer(base, build, tmp_path):
    shutil.copytree(base, tmp_path / "repository" / "inner")
    options = {"model_init_kwargs": {"subfolder": "inner"}}
    trainer = build(tmp_path / "repository", **options)
    stored = read_weights(base / FULL)
    assert torch.equal(weights(trainer)["model.norm.weight"], stored["model.norm.weight"])
    assert trainer.processing_class.chat_template == tokenizer_of("bytes").chat_template
    with pytest.raises(ValueError, match=r"subfolder 'inner', which an adapter's config cannot name"):
        build(tmp_path / "repository", peft_config=lora(), **options)


def test_options_that_would_change_nothing(base, build):
    with pytest.warns(FutureWarning, match="`torch_dtype` of model_init_kwargs is now `dtype`"):
        trainer = build(base, model_init_kwargs={"torch_dtype": "bfloat16"})
    assert trainer.model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="`num_labels` in `model_init_kwargs` is 2"):
        build(base, model_init_kwargs={"num_labels": 2})
    with pytest.raises(ValueError, match="`label_names` is"):
        build(base, label_names=["labels"])
    with pytest.raises(ValueError, match=r"`label_smoothing_factor` is 0.5.*below 0.5"):
        build(base, label_smoothing_factor=0.5)
