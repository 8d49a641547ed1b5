"""Trainings on the alignment alone: their shares are the trainer's, and every variant changes what is learnt."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset
from support.datasets import read_rows
from support.models import build_student
from support.tokenizers import tokenizer_of
from support.training_runs import config

from hf_interdistill import InteractionDistillationTrainer, InteractionTeacher, embedded


@pytest.fixture
def run(modules, encoder, tmp_path, monkeypatch):
    """Runs variants on a tiny student, with four held-out pairs."""
    student, data = tmp_path / "student", tmp_path / "data.jsonl"
    build_student().save_pretrained(student)
    tokenizer_of("bytes").save_pretrained(student)
    rows = sorted(read_rows(), key=lambda row: len(str(row)))[:12]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr(embedded, "language_model", lambda: str(student))
    monkeypatch.setattr(embedded, "encoder", lambda name: encoder)
    fixed = {"data": data, "output": tmp_path / "out.json", "layers": 3, "steps": 2, "batch_size": 4, "held_out": 4}
    options = [word for name, value in fixed.items() for word in (f"--{name}", str(value))]

    def run_variants(*variants, longest=100000):
        return modules.learnability.main([*options, "--longest", str(longest), "--variants", *variants])

    run_variants.rows = rows[:4]
    return run_variants


def test_shares_before_training_are_those_of_the_trainer(run, encoder, tmp_path):
    results = run("last", "all", "group", "before_rope")
    trainer = InteractionDistillationTrainer(
        build_student(),
        config(tmp_path),
        train_dataset=Dataset.from_list(run.rows),
        processing_class=tokenizer_of("bytes"),
        teacher=InteractionTeacher.from_pretrained(encoder),
    )
    metrics = trainer.evaluate(trainer.train_dataset)
    for name in ("explained", "explained_intra", "explained_inter"):
        assert results["last"]["before"][name] == pytest.approx(metrics[f"eval_interaction/{name}"], abs=1e-4)
    by_layer = results["all"]["before"]["by_layer"]
    assert results["last"]["before"]["by_layer"] == by_layer and len(set(by_layer)) == 3
    for name in ("group", "before_rope"):
        assert results[name]["before"]["explained"] != results["last"]["before"]["explained"], name


def test_variants_train_what_they_say(run):
    results = run("last", "heads_and_temperature", "weight_0.3")
    assert {found["steps"] for found in results.values()} == {2}
    plain, learned = results["last"], results["heads_and_temperature"]
    assert plain["head_weights"] == [[0.25] * 4] and plain["temperatures"] == [[1.0] * 4]
    assert learned["head_weights"] != plain["head_weights"] and learned["temperatures"] != plain["temperatures"]
    assert len({found["after"]["explained"] for found in results.values()}) == 3
    assert all(found["after"]["explained"] != found["before"]["explained"] for found in results.values())


def test_too_few_short_pairs_are_refused(run):
    with pytest.raises(ValueError, match=r"0 pairs have at most 5 tokens: raise `--longest`"):
        run("last", longest=5)
