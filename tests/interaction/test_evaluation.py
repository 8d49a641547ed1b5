"""Evaluation and prediction of the trainer against plain torch, one pair at a time."""

from __future__ import annotations

import math
import re

import pytest
import torch
from datasets import Dataset, IterableDataset
from support.models import build_student
from support.training_runs import config

from hf_interdistill import InteractionDistillationTrainer
from hf_interdistill.interaction import evaluation
from hf_interdistill.interaction.evaluation import _warn_of_weak_teacher


def build(dataset, tmp_path, tokenizer, teacher, eval_dataset=None, **changes):
    extra = {key: changes.pop(key) for key in ("compute_metrics",) if key in changes}
    return InteractionDistillationTrainer(
        build_student(),
        config(tmp_path, **changes),
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        teacher=teacher,
        **extra,
    )


def rewards(model, tokenizer, rows) -> torch.Tensor:
    """`(pairs, 2)`, each text alone and without padding."""
    values = []
    with torch.no_grad():
        for row in rows:
            for side in ("chosen", "rejected"):
                text = tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False)
                ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
                values.append(model(ids).logits[0, 0].item())
    return torch.tensor(values).reshape(-1, 2)


def alignment(trainer, rows) -> float:
    """The mean of the alignment loss of single pairs."""
    values = [trainer.evaluate(rows.select([number]))["eval_interaction/loss"] for number in range(len(rows))]
    return sum(values) / len(values)


def test_each_evaluation_set_has_its_own_metrics(dataset, tmp_path, tokenizer, fitted_teacher):
    sets = {"easy": dataset.select(range(8)), "hard": dataset.select(range(8, 13))}
    trainer = build(dataset, tmp_path, tokenizer, fitted_teacher, sets)
    metrics = trainer.evaluate()
    assert not {name for name in metrics if not name.startswith(("eval_easy_", "eval_hard_")) and name != "epoch"}
    logs = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    for name, rows in sets.items():
        scores = rewards(trainer.model.eval(), tokenizer, rows)
        margins = scores[:, 0] - scores[:, 1]
        means = [batch.mean().item() for batch in margins.split(4)]  # TRL's mean over batches
        assert metrics[f"eval_{name}_margin"] == pytest.approx(sum(means) / len(means), rel=1e-4)
        right = [(batch > 0).float().mean().item() for batch in margins.split(4)]
        assert metrics[f"eval_{name}_accuracy"] == pytest.approx(sum(right) / len(right))
        assert metrics[f"eval_{name}_min_reward"] == logs[f"eval_{name}_min_reward"]
        assert metrics[f"eval_{name}_interaction/loss"] == pytest.approx(alignment(trainer, rows), rel=1e-4)
        nll = torch.nn.functional.softplus(-margins).mean().item()
        expected = nll + 0.3 * metrics[f"eval_{name}_interaction/loss"]
        assert metrics[f"eval_{name}_loss"] == pytest.approx(expected, rel=1e-4)
    assert metrics["eval_easy_margin"] != metrics["eval_hard_margin"]


def test_the_best_model_can_be_chosen_by_a_metric_of_one_set(dataset, tmp_path, tokenizer, fitted_teacher):
    chosen = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    trainer = build(
        dataset,
        tmp_path,
        tokenizer,
        fitted_teacher,
        {"a": dataset.select(range(4)), "b": dataset.select(range(4, 8))},
        load_best_model_at_end=True,
        metric_for_best_model="eval_a_interaction/loss",
        greater_is_better=False,
        **chosen,
    )
    trainer.train()
    values = [entry["eval_a_interaction/loss"] for entry in trainer.state.log_history if "eval_a_loss" in entry]
    assert len(values) == 3 and trainer.state.best_metric == min(values)


@pytest.mark.parametrize("weight", [0, 0.5])
def test_predict_gives_both_rewards_of_every_row(dataset, tmp_path, tokenizer, fitted_teacher, weight):
    rows = dataset.select(range(11))  # batches of 4, 4 and 3
    trainer = build(dataset, tmp_path, tokenizer, fitted_teacher, alignment_weight=weight, max_length=200)
    expected = rewards(trainer.model.eval(), tokenizer, rows)
    output = trainer.predict(rows)
    assert output.predictions.shape == (11, 2)  # some are longer than `max_length`, and none is left out
    torch.testing.assert_close(torch.tensor(output.predictions), expected, rtol=1e-4, atol=1e-5)
    margins = expected[:, 0] - expected[:, 1]
    means = [batch.mean().item() for batch in margins.split(4)]
    assert output.metrics["test_margin"] == pytest.approx(sum(means) / 3, rel=1e-4)
    loss = torch.nn.functional.softplus(-margins).mean().item()
    assert output.metrics["test_loss"] == pytest.approx(
        loss + weight * output.metrics.get("test_interaction/loss", math.nan if weight else 0.0), rel=1e-4
    )
    assert trainer.preprocess_logits_for_metrics is None and not trainer._metrics["eval"]
    after = trainer.evaluate(dataset.select(range(3)), metric_key_prefix="later")  # nothing of the prediction is left
    assert after["later_margin"] == pytest.approx(margins[:3].mean().item(), rel=1e-4)
    with pytest.raises(TypeError, match=r"holds 1 datasets .a., but `predict` takes one"):
        trainer.predict({"a": rows})


def test_predict_hands_the_pairs_to_compute_metrics(dataset, tmp_path, tokenizer, fitted_teacher):
    shapes = []

    def count(prediction):
        shapes.append(prediction.predictions.shape)
        return {"pairs": len(prediction.predictions)}

    trainer = build(dataset, tmp_path, tokenizer, fitted_teacher, compute_metrics=count)
    assert trainer.predict(dataset.select(range(5)), metric_key_prefix="x").metrics["x_pairs"] == 5
    assert shapes == [(5, 2)]


def test_the_card_has_the_metrics_of_every_set(dataset, tmp_path, tokenizer, fitted_teacher, no_pictures):
    sets = {"easy": dataset.select(range(4)), "hard": dataset.select(range(4, 7))}
    trainer = build(dataset, tmp_path, tokenizer, fitted_teacher, sets)
    metrics = trainer.evaluate()
    trainer.create_model_card()
    text = (tmp_path / "rm" / "README.md").read_text()
    for name in ("easy", "hard"):
        assert f"| `eval_{name}_accuracy` | {metrics[f'eval_{name}_accuracy']:.4g} |" in text


@pytest.mark.parametrize(
    ("teacher", "student", "pairs", "message"),
    [
        (0.5, 1.0, 4, r"On these 4 pairs .* 0\.500 \(95 % interval 0\.068 to 0\.932\), .*the teacher judges worse"),
        (0.5, 0.75, 4, r"On these 4 pairs .* 0\.750: the pairs do not show .* Evaluate on more pairs"),
        (0.5, 0.75, 400, r"On these 400 pairs .*the teacher judges worse"),
        (0.75, 0.75, 400, "do not show"),
        (0.8, 0.75, 400, None),
    ],
)
def test_a_weak_teacher_is_said_to_be_weak_as_surely_as_the_pairs_show(teacher, student, pairs, message, caplog):
    _warn_of_weak_teacher({"x_interaction/teacher_accuracy": teacher, "x_accuracy": student}, "x", pairs)
    assert not caplog.text if message is None else re.search(message, caplog.text)


def test_the_warning_has_the_number_of_pairs(dataset, tmp_path, tokenizer, fitted_teacher, monkeypatch):
    counts = []
    monkeypatch.setattr(evaluation, "_warn_of_weak_teacher", lambda metrics, prefix, pairs: counts.append(pairs))
    sets = {"easy": dataset.select(range(5)), "hard": dataset.select(range(4, 7))}
    build(dataset, tmp_path, tokenizer, fitted_teacher, sets).evaluate()
    assert counts == [5, 3]


SAME = {"prompt": "Say it. ", "chosen": "the same words", "rejected": "the same words"}
PAIRS = [
    SAME,
    {"prompt": "A question? ", "chosen": "a full answer", "rejected": "no"},
    {"prompt": "What of bread? ", "chosen": "bake it", "rejected": "throw it away at once"},
    {"prompt": "Nothing? ", "chosen": "", "rejected": "something"},
]


def as_stream(rows) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(rows))


@pytest.mark.parametrize("is_stream", [False, True])
def test_pairs_that_are_not_aligned_count_in_evaluation(tmp_path, tokenizer, fitted_teacher, is_stream):
    data = Dataset.from_list(PAIRS[1:] * 2)
    given = as_stream(PAIRS) if is_stream else Dataset.from_list(PAIRS)
    found, rewards_of = {}, {}
    for weight in (0.3, 0):
        teacher = fitted_teacher if weight else None
        trainer = build(data, tmp_path, tokenizer, teacher, alignment_weight=weight, per_device_eval_batch_size=2)
        found[weight], rewards_of[weight] = trainer.evaluate(given), trainer.predict(given).predictions
        alone = [trainer.evaluate(Dataset.from_list([row])) for row in PAIRS]
        assert trainer.predict(Dataset.from_list([SAME])).predictions.shape == (1, 2)
        if weight:
            losses = [metrics["eval_interaction/loss"] for metrics in alone[1:]]
            assert "eval_interaction/loss" not in alone[0]
            assert found[weight]["eval_interaction/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
            judged = [metrics["eval_interaction/teacher_accuracy"] for metrics in alone[1:]]
            assert found[weight]["eval_interaction/teacher_accuracy"] == pytest.approx(sum(judged) / len(judged))
    assert rewards_of[0.3].shape == rewards_of[0].shape == (4, 2)
    torch.testing.assert_close(torch.tensor(rewards_of[0.3]), torch.tensor(rewards_of[0]), rtol=1e-4, atol=1e-5)
    assert rewards_of[0.3][0, 0] == rewards_of[0.3][0, 1]
    right = (rewards_of[0][:, 0] > rewards_of[0][:, 1]).mean()
    assert found[0.3]["eval_accuracy"] == found[0]["eval_accuracy"] == pytest.approx(right)


def test_an_evaluation_set_named_train_keeps_its_pairs(tmp_path, tokenizer, fitted_teacher):
    data = Dataset.from_list(PAIRS[1:] * 2)
    trainer = build(data, tmp_path, tokenizer, fitted_teacher, {"train": Dataset.from_list(PAIRS)})
    assert len(trainer.eval_dataset["train"]) == 4 and len(trainer.train_dataset) == 6
    trainer = build(Dataset.from_list(PAIRS), tmp_path, tokenizer, fitted_teacher)
    assert len(trainer.train_dataset) == 3  # and is trained without the pair that teaches nothing
    trainer.evaluate({"train": Dataset.from_list(PAIRS)})
