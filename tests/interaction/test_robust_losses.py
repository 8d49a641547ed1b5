"""GRM's regularization and the length penalty through the trainer, alone and with the alignment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig
from support.models import build_student
from support.training_runs import config, losses, weights
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_interdistill import InteractionDistillationTrainer, RewardScorer


def make(tmp_path, dataset, tokenizer, student=None, teacher=None, peft_config=None, **changes):
    return InteractionDistillationTrainer(
        student if student is not None else build_student(tie_word_embeddings=True),
        config(tmp_path, **{"max_steps": 1, "alignment_weight": 0, **changes}),
        train_dataset=dataset.select(range(4)),
        eval_dataset=dataset.select(range(4)),
        processing_class=tokenizer,
        teacher=teacher,
        peft_config=peft_config,
    )


def written(model, head, row, side: str) -> torch.Tensor:
    """Log-probability of a response, token by token, by the logits of a language model with these weights."""
    ids = row[f"{side}_ids"]
    equal = [one == other for one, other in zip(row["chosen_ids"], row["rejected_ids"], strict=False)]
    begin = equal.index(False) if False in equal else len(equal)
    states = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    logs = (states @ head.T).log_softmax(-1)
    return sum(logs[place - 1, ids[place]] for place in range(begin, len(ids)))


@pytest.mark.parametrize("share_prompt", ["false", "true"])
@pytest.mark.parametrize("form", ["sft", "dpo"])
def test_regularization_is_grms(form, share_prompt, tmp_path, dataset, tokenizer):
    weight, beta = 0.3, 0.02
    trainer = make(
        tmp_path,
        dataset,
        tokenizer,
        share_prompt=share_prompt,
        regularization_weight=weight,
        regularization_loss=form,
        regularization_beta=beta,
    )
    model, rows = trainer.model, list(trainer.train_dataset)
    head = model.get_input_embeddings().weight
    rewards = {
        side: torch.stack([model(torch.tensor([row[f"{side}_ids"]])).logits[0, 0] for row in rows])
        for side in ("chosen", "rejected")
    }
    log_probs = torch.stack([written(model, head, row, "chosen") for row in rows])
    ratio = log_probs
    if form == "dpo":
        ratio = ratio - torch.stack([written(model, head, row, "rejected") for row in rows])
    regularization = -torch.nn.functional.logsigmoid(beta * ratio).mean()
    reward_loss = -torch.nn.functional.logsigmoid(rewards["chosen"] - rewards["rejected"]).mean()
    wanted = (1 - weight) * reward_loss + weight * regularization
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(wanted, parameters)
    loss = trainer.compute_loss(model, next(iter(trainer.get_train_dataloader())))
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    for one, other in zip(torch.autograd.grad(loss, parameters), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-4 * float(other.abs().max()) + 1e-6)
    trainer.train()
    assert losses(trainer, "regularization/loss")[0] == pytest.approx(float(regularization.detach()), rel=1e-4)
    assert losses(trainer, "regularization/logps_chosen")[0] == pytest.approx(float(log_probs.mean()), rel=1e-4)
    metrics = trainer.evaluate()
    assert {"eval_regularization/loss", "eval_regularization/logps_chosen"} <= metrics.keys()


@pytest.fixture
def language_model(tmp_path, tokenizer):
    """The folder of a language model whose head is not its embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=900, pad_token_id=3, bos_token_id=1, eos_token_id=2, **shape))
    folder = tmp_path / "language_model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_another_head_is_loaded_frozen_and_never_saved(language_model, tmp_path, dataset, tokenizer):
    trainer = make(tmp_path, dataset, tokenizer, str(language_model), regularization_weight=0.5, max_steps=2)
    head = AutoModelForCausalLM.from_pretrained(language_model).lm_head.weight.detach()
    with torch.no_grad():
        log_probs = [written(trainer.model, head, row, "chosen") for row in trainer.train_dataset]
    trainer.train()
    wanted = float(torch.stack(log_probs).mean())
    assert losses(trainer, "regularization/logps_chosen")[0] == pytest.approx(wanted, rel=1e-4)
    trainer.create_model_card(model_name="rm")
    assert "regularization_weight" in (tmp_path / "rm" / "README.md").read_text()
    assert torch.equal(trainer._reward_loss.language_head.weights[0], head)
    trainer.save_model(tmp_path / "saved")
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert not any("lm_head" in name for name in saved.state_dict())
    scorer = RewardScorer.from_pretrained(str(tmp_path / "saved"))
    row = dataset[0]
    assert np.isfinite(scorer([row["prompt"]], [row["chosen"]])).all()


def test_regularization_under_lora_and_checkpointing(tmp_path, dataset, tokenizer):
    runs = []
    for is_on in (False, True):
        adapter = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=True)
        trainer = make(
            tmp_path,
            dataset,
            tokenizer,
            peft_config=adapter,
            regularization_weight=0.3,
            gradient_checkpointing=is_on,
            max_steps=2,
        )
        trainer.train()
        runs.append((losses(trainer), losses(trainer, "regularization/loss")))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-5) and runs[0][1] == pytest.approx(runs[1][1], rel=1e-5)


def test_heads_that_cannot_be_had_are_refused(tmp_path, dataset, tokenizer):
    def refused(message, student, **changes):
        with pytest.raises(ValueError, match=message):
            make(tmp_path, dataset, tokenizer, student, regularization_weight=0.1, **changes)

    refused(r"`tie_word_embeddings` false. Pass the model by its name", build_student(tie_word_embeddings=False))
    refused(
        r"changes the logits after it \(`final_logit_softcapping` is 30.0\)",
        build_student("gemma2", "eager", tie_word_embeddings=True),
    )
    build_student(tie_word_embeddings=False).save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    refused(r"has none \(`lm_head.weight` is missing\). Start from a language model", str(tmp_path / "classifier"))


def test_the_length_penalty_is_the_correlation_within_pairs(tmp_path, dataset, tokenizer):
    trainer = make(tmp_path, dataset, tokenizer, length_penalty_weight=0.7)
    model, rows = trainer.model, list(trainer.train_dataset)
    with torch.no_grad():
        rewards = np.array(
            [[float(model(torch.tensor([row[f"{s}_ids"]])).logits) for s in ("chosen", "rejected")] for row in rows]
        )
    lengths = np.array([[len(row["chosen_ids"]), len(row["rejected_ids"])] for row in rows])
    centered = [values - values.mean(1, keepdims=True) for values in (rewards, lengths)]
    correlation = np.corrcoef(*(values.ravel() for values in centered))[0, 1]
    plain = np.log1p(np.exp(rewards[:, 1] - rewards[:, 0])).mean()
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(plain + 0.7 * abs(correlation), rel=1e-3)
    assert losses(trainer, "length/loss")[0] == pytest.approx(abs(correlation), rel=1e-3)
    assert losses(trainer, "length/correlation")[0] == pytest.approx(correlation, rel=1e-3)
    assert "eval_length/correlation" in trainer.evaluate()


def test_training_lowers_the_correlation_and_a_single_pair_has_none(tmp_path, dataset, tokenizer):
    final = []
    for weight in (1e-9, 3.0):
        trainer = make(
            tmp_path,
            dataset,
            tokenizer,
            length_penalty_weight=weight,
            max_steps=20,
            learning_rate=3e-3,
            per_device_eval_batch_size=3,  # the last batch has one pair
        )
        trainer.train()
        final.append(abs(losses(trainer, "length/correlation")[-1]))
        metrics = trainer.evaluate()
        assert np.isfinite(metrics["eval_loss"]) and np.isfinite(metrics["eval_length/correlation"])
    assert final[1] < 0.5 * final[0]


@pytest.mark.parametrize("share_prompt", ["false", "true"])
def test_all_of_it_with_the_alignment(share_prompt, tmp_path, dataset, tokenizer, fitted_teacher):
    student = build_student(tie_word_embeddings=True)
    alone = make(tmp_path, dataset, tokenizer, student, share_prompt=share_prompt)
    alone.train()
    options = {"regularization_weight": 0.2, "length_penalty_weight": 0.5, "share_prompt": share_prompt}
    trainer = make(tmp_path, dataset, tokenizer, None, fitted_teacher, alignment_weight=0.4, **options)
    trainer.train()
    logs = next(entry for entry in trainer.state.log_history if "loss" in entry)
    reward = losses(alone)[0] + 0.5 * logs["length/loss"]
    wanted = 0.8 * reward + 0.2 * logs["regularization/loss"] + 0.4 * logs["interaction/loss"]
    assert float(logs["loss"]) == pytest.approx(wanted, rel=1e-3)
    assert "interaction/explained" in {key for entry in trainer.state.log_history for key in entry}


def test_killed_and_resumed_is_uninterrupted(tmp_path, dataset, tokenizer):
    options = {"regularization_weight": 0.2, "length_penalty_weight": 0.5, "max_steps": 4}
    whole = make(tmp_path / "whole", dataset, tokenizer, **options)
    whole.train()
    make(tmp_path, dataset, tokenizer, **options, save_strategy="steps", save_steps=2).train()
    resumed = make(tmp_path, dataset, tokenizer, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "rm" / "checkpoint-2"))
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name
