"""Attribute scores: heads whose weighted sum is the reward, trained by squared errors and saved beside one output."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig
from support.models import build_encoder, build_student
from support.training_runs import config, losses
from transformers import AutoModelForSequenceClassification

from hf_interdistill import InteractionDistillationConfig, InteractionDistillationTrainer, RewardScorer
from hf_interdistill.hub.files import stage_model
from hf_interdistill.interaction.losses.attributes import attribute_errors
from hf_interdistill.scoring.attributes import ATTRIBUTES_FILE, RewardAttributes

NAMES = ("helpfulness", "correctness", "verbosity")
WEIGHTS = {"helpfulness": 0.65, "correctness": 0.8, "verbosity": -0.4}


def scored(dataset, rows: int = 4):
    """Rows with scores of both responses, of which `coherence` is not asked for."""

    def add(row, index):
        chosen = {name: float((index + place) % 4) for place, name in enumerate((*NAMES, "coherence"))}
        return {"chosen_scores": chosen, "rejected_scores": {name: 4 - value for name, value in chosen.items()}}

    return dataset.select(range(rows)).map(add, with_indices=True)


def make(tmp_path, dataset, tokenizer, student=None, teacher=None, peft_config=None, **changes):
    rows = scored(dataset)
    settings = {"max_steps": 1, "alignment_weight": 0, "attribute_weights": dict(WEIGHTS), **changes}
    return InteractionDistillationTrainer(
        student if student is not None else build_student(),
        config(tmp_path, **settings),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        teacher=teacher,
        peft_config=peft_config,
    )


def states_of(model, rows, side: str) -> torch.Tensor:
    """What the reward is read from, text by text `(pairs, hidden_size)`."""
    return torch.stack([model.model(torch.tensor([row[f"{side}_ids"]])).last_hidden_state[0, -1] for row in rows])


@pytest.mark.parametrize("share_prompt", ["false", "true"])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_loss_and_gradients_are_those_of_plain_heads(share, share_prompt, tmp_path, dataset, tokenizer):
    trainer = make(tmp_path, dataset, tokenizer, share_prompt=share_prompt, attribute_loss_weight=share)
    model, rows = trainer.model, list(trainer.train_dataset)
    head = model.attribute_head
    with torch.no_grad():  # heads that are not zero, so that every gradient counts
        head.rows.copy_(torch.randn(2, 32, generator=torch.Generator().manual_seed(0)))
    assert head.names[head.pivot] == "correctness"
    weights = torch.tensor(list(WEIGHTS.values()))
    reward_head = model.score.weight[0]
    plain = torch.stack([head.rows[0], torch.zeros_like(reward_head), head.rows[1]])
    rest = (reward_head - weights @ plain) / weights[1]
    plain = torch.stack([plain[0], rest, plain[2]])
    torch.testing.assert_close(weights @ plain, reward_head)
    wanted = 0.0
    for side in ("chosen", "rejected"):
        scores = torch.tensor([[row[f"{side}_scores"][name] for name in NAMES] for row in rows])
        wanted = wanted + (states_of(model, rows, side) @ plain.T + head.bias - scores).square().mean() / 2
    rewards = {side: states_of(model, rows, side) @ reward_head for side in ("chosen", "rejected")}
    preference = -torch.nn.functional.logsigmoid(rewards["chosen"] - rewards["rejected"]).mean()
    total = (1 - share) * preference + share * wanted
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(total, parameters)
    loss = trainer.compute_loss(model, next(iter(trainer.get_train_dataloader())))
    assert float(loss.detach()) == pytest.approx(float(total.detach()), rel=1e-4)
    for one, other in zip(torch.autograd.grad(loss, parameters), gradients, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-4 * float(other.abs().max()) + 1e-6)
    trainer.train()
    assert losses(trainer, "attribute/loss")[0] == pytest.approx(float(wanted.detach()), rel=1e-4)
    metrics = trainer.evaluate()
    assert {"eval_attribute/loss", *(f"eval_attribute/{name}" for name in NAMES)} <= metrics.keys()


def test_errors_by_hand():
    predictions = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 0.0], [1.0, 1.0]])
    scores = torch.tensor([[0.0, 0.0], [0.0, 3.0], [1.0, 0.0], [0.0, 0.0]])
    assert attribute_errors(predictions, scores).tolist() == [[2.5, 2.0], [0.5, 5.0]]


def test_heads_start_from_the_mean_scores(tmp_path, dataset, tokenizer):
    trainer = make(tmp_path, dataset, tokenizer)
    assert trainer.model.attribute_head.bias.tolist() == [2.0, 2.0, 2.0]
    assert not trainer.model.attribute_head.rows.any()


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_the_saved_model_has_one_output_that_is_the_weighted_sum(adapter, tmp_path, dataset, tokenizer):
    student, peft_config = None, None
    if adapter:
        build_student().save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        student = str(tmp_path / "base")
        peft_config = LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], target_modules=["q_proj"])
    trainer = make(tmp_path, dataset, tokenizer, student, peft_config=peft_config, max_steps=6, learning_rate=0.02)
    trainer.train()
    folder = tmp_path / "saved"
    trainer.save_model(str(folder))
    scorer = RewardScorer.from_pretrained(str(folder))
    assert scorer.model.config.num_labels == 1
    prompts, texts = ["How do I bake bread?", "Why?", "Tell me more"], [" With flour.", " Because.", " No"]
    heads = RewardAttributes.from_pretrained(folder)
    assert heads.weights == WEIGHTS and heads.weight.shape == (3, 32)
    found = heads.scores(scorer, prompts, texts)
    assert [list(each) for each in found] == [list(NAMES)] * 3
    constant = float(heads.bias @ torch.tensor(list(WEIGHTS.values())))
    for own, reward in zip(found, scorer(prompts, texts), strict=True):
        assert sum(WEIGHTS[name] * own[name] for name in NAMES) - constant == pytest.approx(reward, abs=1e-3)
    assert len({round(each["verbosity"], 4) for each in found}) == 3
    row = scorer.encode_rows(prompts[:1], texts[:1])[0]
    base = scorer.model.get_base_model() if adapter else scorer.model
    state = base.model(torch.tensor([row])).last_hidden_state[0, -1]
    expected = (heads.weight @ state + heads.bias).tolist()
    assert list(found[0].values()) == pytest.approx(expected, abs=1e-3)
    if adapter is None:
        again = AutoModelForSequenceClassification.from_pretrained(folder)
        torch.testing.assert_close(again.score.weight, trainer.model.score.weight.detach())
        assert not any("attribute" in name for name in again.state_dict())


def test_scores_are_learnt(tmp_path, dataset, tokenizer):
    trainer = make(tmp_path, dataset, tokenizer, max_steps=40, learning_rate=0.01, attribute_loss_weight=1.0)
    before = trainer.evaluate()["eval_attribute/loss"]
    trainer.train()
    assert trainer.evaluate()["eval_attribute/loss"] < 0.3 * before


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, dataset, tokenizer):
    settings = {"max_steps": 4, "save_steps": 2, "save_strategy": "steps", "learning_rate": 0.01}
    whole = make(tmp_path / "whole", dataset, tokenizer, **settings)
    whole.train()
    checkpoint = tmp_path / "whole" / "rm" / "checkpoint-2"
    assert (checkpoint / ATTRIBUTES_FILE).is_file()
    resumed = make(tmp_path / "resumed", dataset, tokenizer, build_student(seed=1), **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for (name, one), (_, other) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)
    other = make(tmp_path / "other", dataset, tokenizer, attribute_weights={"helpfulness": 1.0}, **settings)
    with pytest.raises(ValueError, match=r"has the attributes .*, but `attribute_weights` is {'helpfulness': 1.0}"):
        other.train(resume_from_checkpoint=str(checkpoint))


def test_the_best_model_is_loaded_with_its_heads(tmp_path, dataset, tokenizer):
    steps = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    trainer = make(tmp_path, dataset, tokenizer, max_steps=3, load_best_model_at_end=True, learning_rate=0.3, **steps)
    trainer.train()
    best = RewardAttributes.from_pretrained(trainer.state.best_model_checkpoint)
    torch.testing.assert_close(trainer.model.attribute_head.bias.detach(), best.bias)


def test_they_go_with_the_other_options_and_the_alignment(tmp_path, dataset, tokenizer, teacher):
    changes = {"length_penalty_weight": 0.5, "regularization_weight": 0.1, "alignment_weight": 0.1}
    student = build_student(tie_word_embeddings=True)
    trainer = make(tmp_path, dataset, tokenizer, student, teacher, attribute_weights=json.dumps(WEIGHTS), **changes)
    trainer.train()
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert {"attribute/loss", "length/loss", "regularization/loss", "interaction/loss"} <= logged


def test_the_heads_go_to_the_hub(tmp_path, dataset, tokenizer):
    trainer = make(tmp_path, dataset, tokenizer)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    trainer.create_model_card()
    (tmp_path / "saved" / "README.md").write_bytes((tmp_path / "rm" / "README.md").read_bytes())
    files = [file.path_in_repo for file in stage_model(tmp_path / "saved", "me/model")]
    assert ATTRIBUTES_FILE in files and "model.safetensors" in files


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attribute_weights": {"helpfulness": 0.0}}, "the reward would be 0 for every text"),
        ({"attribute_weights": {}}, "the reward would be 0 for every text"),
        ({"attribute_weights": {"helpfulness": float("nan")}}, "has nan for 'helpfulness', but must have a finite"),
        ({"attribute_weights": {"helpfulness": "1"}}, "has '1' for 'helpfulness'"),
        ({"attribute_weights": ["helpfulness"]}, "must be a mapping"),
        ({"attribute_weights": "{"}, "must be JSON"),
        ({"attribute_loss_weight": 0.0}, "`attribute_loss_weight` is 0.0, but must be above 0 and at most 1"),
        ({"attribute_loss_weight": 1.5}, "`attribute_loss_weight` is 1.5"),
        ({"attribute_weights": None, "attribute_loss_weight": 0.2}, "changes nothing without `attribute_weights`"),
        (
            {"attribute_loss_weight": 1.0, "label_smoothing_factor": 0.1},
            "`label_smoothing_factor` is 0.1, but changes nothing with `attribute_loss_weight` 1",
        ),
        ({"attribute_loss_weight": 1.0, "tie_model": "davidson"}, "`tie_model` is 'davidson', but changes nothing"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        InteractionDistillationConfig(str(tmp_path), **{"attribute_weights": dict(WEIGHTS), **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.remove_columns("rejected_scores"), "the train dataset has no column `rejected_scores`"),
        (
            lambda rows: rows.map(
                lambda row, i: {"chosen_scores": None if i == 2 else row["chosen_scores"]}, with_indices=True
            ),
            "train dataset: Row 2: `chosen_scores` (is None|has None for `helpfulness`)",
        ),
        (
            lambda rows: rows.map(lambda row: {"chosen_scores": {**row["chosen_scores"], "verbosity": float("nan")}}),
            "train dataset: Row 0: `chosen_scores` has nan for `verbosity`, but must have a finite number",
        ),
        (lambda rows: rows.to_iterable_dataset(), "the train dataset is a stream"),
    ],
)
def test_rows_without_scores_are_refused(change, message, tmp_path, dataset, tokenizer):
    with pytest.raises(ValueError, match=message):
        InteractionDistillationTrainer(
            build_student(),
            config(tmp_path, max_steps=1, alignment_weight=0, attribute_weights=dict(WEIGHTS)),
            train_dataset=change(scored(dataset)),
            processing_class=tokenizer,
        )


def test_names_that_the_data_do_not_have_are_refused(tmp_path, dataset, tokenizer):
    names = "helpfulness, correctness, verbosity, coherence|coherence, correctness, helpfulness, verbosity"
    with pytest.raises(ValueError, match=rf"has None for `humor`.*it holds ({names})"):
        make(tmp_path, dataset, tokenizer, attribute_weights={"humor": 1.0})


def test_rankings_have_no_attributes(tmp_path, dataset, tokenizer):
    rows = (
        dataset.select(range(3))
        .map(lambda row: {"completions": [row["chosen"], row["rejected"]], "ranks": [1, 2]})
        .remove_columns(["chosen", "rejected"])
    )
    with pytest.raises(ValueError, match="the train dataset has ranked responses, which have no attribute scores"):
        InteractionDistillationTrainer(
            build_student(),
            config(tmp_path, max_steps=1, alignment_weight=0, attribute_weights=dict(WEIGHTS)),
            train_dataset=rows,
            processing_class=tokenizer,
        )


def test_an_encoder_has_no_head_named_score(tmp_path, dataset):
    encoder, tokenizer = build_encoder()
    encoder.config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(encoder.config)
    rows = scored(dataset).map(
        lambda row: {key: " ".join(m["content"] for m in row[key]) for key in ("prompt", "chosen", "rejected")}
    )
    tokenizer.eos_token = tokenizer.sep_token
    with pytest.raises(ValueError, match="`attribute_weights` reads the states before the module `score`"):
        InteractionDistillationTrainer(
            model,
            config(tmp_path, max_steps=1, alignment_weight=0, attribute_weights=dict(WEIGHTS)),
            train_dataset=rows,
            processing_class=tokenizer,
        )


def test_files_that_are_no_heads_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="the model was trained without `attribute_weights`"):
        RewardAttributes.from_pretrained(tmp_path)
    for content in ("{", "[]", '{"a": {"weight": 1}}', '{"a": {"weight": 1, "bias": 0, "head": 3}}'):
        (tmp_path / ATTRIBUTES_FILE).write_text(content)
        with pytest.raises(ValueError, match=f"{ATTRIBUTES_FILE} is damaged, or holds no attribute heads"):
            RewardAttributes.from_pretrained(tmp_path)
    heads = RewardAttributes({"a": 1.0}, torch.zeros(1, 7), torch.zeros(1))
    heads.save(tmp_path)
    from support.tokenizers import tokenizer_of

    scorer = RewardScorer(build_student().eval(), tokenizer_of("bytes"))
    with pytest.raises(ValueError, match="read states of 7 numbers, but LlamaForSequenceClassification has"):
        RewardAttributes.from_pretrained(tmp_path).scores(scorer, ["a"], ["b"])
