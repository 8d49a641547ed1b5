"""Transforms, columns with names of ours, and streams of which nothing is left."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset, IterableDataset
from support.models import build_student
from support.teachers import LEARNABLE, settings, small_teacher
from support.training_runs import config, losses, weights

from hf_interdistill import InteractionDistillationTrainer, RewardScorer
from hf_interdistill.interaction.data.pairs import read_preferences

ROWS = LEARNABLE[:8]
MESSAGES = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        **{side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")},
    }
    for row in ROWS
]
OWN_NAMES = (
    *("pair_index", "pair_key", "unit_sizes", "units_lost", "has_equal_ids", "is_empty", "shared_units"),
    *("student_chosen_units", "teacher_prompt_ids", "other_ids", "ranks", "segments", "is_aligned"),
    *("chosen_ids", "rejected_ids", "chosen_input_ids", "rejected_input_ids", "input_ids", "attention_mask"),
    *("labels", "label", "length", "units", "chosen_scores", "rejected_scores", "map_key", "teacher_units"),
)


def swapped(batch):
    return {**batch, "chosen": batch["rejected"], "rejected": batch["chosen"]}


def as_stream(rows) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(rows))


@pytest.fixture
def build(tmp_path, tokenizer, fitted_teacher):
    def make(train, eval_dataset=None, **changes):
        args = config(tmp_path, max_steps=2, **changes)
        teacher = fitted_teacher if args.alignment_weight else None
        return InteractionDistillationTrainer(
            build_student(),
            args,
            train_dataset=train,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            teacher=teacher,
        )

    return make


def trained(trainer):
    trainer.train()
    return losses(trainer), weights(trainer)


@pytest.mark.parametrize("weight", [0, 0.3])
def test_a_transform_is_refused_with_what_does_the_same(build, weight):
    data = Dataset.from_list(ROWS)
    transformed = data.with_transform(swapped)
    fix = r"has a transform .*`dataset.with_format\(None\).map\(transform, batched=True\)`"
    for train, eval_dataset in ((transformed, None), (data, transformed), (data, {"hard": transformed})):
        with pytest.raises(ValueError, match=fix):
            build(train, eval_dataset, alignment_weight=weight)
    trainer = build(data, alignment_weight=weight)
    for method in (trainer.evaluate, trainer.predict):
        with pytest.raises(ValueError, match=fix):
            method(transformed)
    rows = transformed.with_format(None).map(swapped, batched=True)
    expected = build(Dataset.from_list(list(map(swapped, ROWS))), alignment_weight=weight)
    assert trained(build(rows, alignment_weight=weight))[0] == trained(expected)[0]


def test_teachers_and_scorers_read_transformed_rows(tmp_path, tokenizer):
    transformed = Dataset.from_list(ROWS).with_transform(swapped)
    assert [each.chosen for each in read_preferences(transformed, "rows")] == [row["rejected"] for row in ROWS]
    data, kinds = Dataset.from_list(LEARNABLE[:12]), {"num_train_epochs": 1, "warm_start_epochs": 0}
    fits = [small_teacher(), small_teacher()]
    fits[0].fit(data.with_transform(swapped), args=settings(tmp_path / "a", **kinds))
    fits[1].fit(list(map(swapped, LEARNABLE[:12])), args=settings(tmp_path / "b", **kinds))
    for one, other in zip(*(each.network.parameters() for each in fits), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    scorer = RewardScorer(build_student(), tokenizer)
    expected = scorer([row["prompt"] for row in ROWS], [row["rejected"] for row in ROWS])
    assert scorer(transformed["prompt"], transformed["chosen"]) == expected


@pytest.mark.parametrize("kind", ["text", "messages", "stream"])
@pytest.mark.parametrize("weight", [0, 0.3])
def test_columns_with_names_of_ours_are_the_users(build, kind, weight):
    rows = MESSAGES if kind == "messages" else ROWS
    crowded = [{**row, **{name: f"{name} {number}" for name in OWN_NAMES}} for number, row in enumerate(rows)]
    plain, given = Dataset.from_list(rows), Dataset.from_list(crowded)
    if kind == "stream":
        plain, given = as_stream(plain.to_list()), as_stream(given.to_list())
    expected = build(plain, alignment_weight=weight)
    found = build(given, alignment_weight=weight)
    (found_losses, found_weights), (expected_losses, expected_weights) = trained(found), trained(expected)
    assert found_losses == expected_losses
    assert all((found_weights[name] == value).all() for name, value in expected_weights.items())
    metrics = [trainer.evaluate(data) for trainer, data in ((found, given), (expected, plain))]
    same = [key for key in metrics[1] if "second" not in key and "time" not in key]
    assert {key: metrics[0][key] for key in same} == {key: metrics[1][key] for key in same}


@pytest.mark.parametrize("weight", [0, 0.3])
def test_a_row_is_found_by_its_place_whatever_its_own_number(build, weight):
    rows = [{**row, "pair_index": 100 - number, "margin": 1.0} for number, row in enumerate(ROWS)]
    trainer = build(Dataset.from_list(rows), alignment_weight=weight)
    assert list(trainer.train_dataset["pair_index"]) == list(range(8))
    again = build(trainer.train_dataset.select(range(3, 8)), alignment_weight=weight)
    assert list(again.train_dataset["pair_index"]) == [3, 4, 5, 6, 7]  # one that was prepared here keeps its numbers
    rows[5]["margin"] = None
    with pytest.raises(ValueError, match="train dataset: Row 5: `margin` is None"):
        build(Dataset.from_list(rows), alignment_weight=weight)


@pytest.mark.parametrize("weight", [0, 0.3])
@pytest.mark.parametrize("rows", [ROWS, MESSAGES])
def test_a_stream_of_which_nothing_is_left_is_refused(build, rows, weight):
    left = r"No pair of the {} dataset is left: of each, a response is longer than `max_length=2` tokens.*Raise"
    with pytest.raises(ValueError, match=left.format("train")):
        build(as_stream(rows), max_length=2, alignment_weight=weight)
    trainer = build(as_stream(rows), max_length=500, alignment_weight=weight)
    trainer.args.max_length = 2
    with pytest.raises(ValueError, match=left.format("eval")):
        trainer.evaluate(as_stream(rows))
    if weight:
        equal = [{**row, "rejected": row["chosen"]} for row in rows]
        with pytest.raises(ValueError, match=r"No pair of the train dataset is left.*both are the same token ids"):
            build(as_stream(equal), max_length=None, alignment_weight=weight)


def test_a_stream_of_rankings_of_which_nothing_is_left_is_refused(build):
    row = {"prompt": "Which? ", "completions": ["one", "two", "a much longer third answer " * 9], "ranks": [0, 2, 1]}
    with pytest.raises(ValueError, match="No pair of the train dataset is left"):
        build(as_stream([row] * 4), max_length=20, alignment_weight=0)
