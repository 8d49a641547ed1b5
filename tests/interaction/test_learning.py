"""How much was learnt: the explained share in logs and evaluation, at the start and at the end."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from datasets import Dataset
from support.models import build_student
from support.training_runs import config, losses, weights

from hf_interdistill import InteractionDistillationTrainer, RewardScorer
from hf_interdistill.interaction import learning, publishing
from hf_interdistill.interaction.attention.map_sources import dense
from hf_interdistill.interaction.example_maps import _CHOSEN, _PROMPT, _REJECTED
from hf_interdistill.interaction.inspection import pair_maps
from hf_interdistill.interaction.losses.explained import LITTLE_EXPLAINED
from hf_interdistill.interaction.objective import AlignmentObjective

NAMES = {"joint": "explained", "intra": "explained_intra", "inter": "explained_inter"}


def build(dataset, tmp_path, tokenizer, teacher, **changes):
    eval_dataset = changes.pop("eval_dataset", None)
    return InteractionDistillationTrainer(
        changes.pop("student", None) or build_student(),
        config(tmp_path, **changes),
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        teacher=teacher,
    )


@pytest.fixture
def seen(monkeypatch):
    """By scope, KL(teacher, student) and KL(teacher, uniform) of each pair that was aligned, by loops over rows."""
    pairs: list[dict[str, tuple[float, float]]] = []
    right = AlignmentObjective.layer_loss

    def noted(self, student, teacher, segments, *rest):
        with torch.no_grad():
            own = torch.cat([student.pool(student.attend(*block), *block) for block in student.blocks()], 1)
            for b, target in enumerate(dense(teacher)):
                units = [u for u in range(len(target)) if segments[b, u] >= 0 and target[u].any() and own[b, u].any()]
                if units:
                    pairs.append(by_scope(own[b][units][:, units], target[units][:, units], segments[b, units]))
        return right(self, student, teacher, segments, *rest)

    monkeypatch.setattr(AlignmentObjective, "layer_loss", noted)
    return pairs


def by_scope(student, teacher, segments) -> dict[str, tuple[float, float]]:
    found = {}
    for scope in NAMES:
        rows = []
        for u, side in enumerate(segments.tolist()):
            is_other = (segments > 0) & (segments != side) & (side > 0)
            mask = {"joint": torch.ones_like(is_other), "intra": ~is_other, "inter": is_other}[scope]
            if not mask.any():
                continue
            t, s = teacher[u, mask] / teacher[u, mask].sum(), student[u, mask] / student[u, mask].sum()
            is_kept = t > 0
            logs = t[is_kept].log()
            own, equal = (t[is_kept] * (logs - s[is_kept].log())).sum(), (t[is_kept] * logs).sum() + mask.sum().log()
            rows.append((float(own), float(equal)) if equal > 1e-5 else (0.0, 0.0))
        found[scope] = tuple(sum(row[i] for row in rows) / len(rows) for i in (0, 1))
    return found


def expected(pairs, scope) -> float:
    return 1 - sum(pair[scope][0] for pair in pairs) / sum(pair[scope][1] for pair in pairs)


def test_evaluation_is_exact_over_uneven_batches_and_sets(dataset, tmp_path, tokenizer, fitted_teacher, seen):
    sets = {"easy": dataset.select(range(9)), "hard": dataset.select(range(9, 14))}
    metrics = build(dataset, tmp_path, tokenizer, fitted_teacher, eval_dataset=sets).evaluate()
    assert len(seen) == 14
    for scope, name in NAMES.items():
        assert metrics[f"eval_easy_interaction/{name}"] == pytest.approx(expected(seen[:9], scope), abs=1e-5)
        assert metrics[f"eval_hard_interaction/{name}"] == pytest.approx(expected(seen[9:], scope), abs=1e-5)


def test_one_set_and_prediction(dataset, tmp_path, tokenizer, fitted_teacher, seen):
    trainer = build(dataset, tmp_path, tokenizer, fitted_teacher)
    found = trainer.evaluate(dataset.select(range(5)))["eval_interaction/explained"]
    predicted = trainer.predict(dataset.select(range(5))).metrics["test_interaction/explained"]
    assert found == predicted == pytest.approx(expected(seen[:5], "joint"), abs=1e-5)


def test_a_log_is_of_all_pairs_since_the_last(dataset, tmp_path, tokenizer, fitted_teacher, seen):
    """Micro-batches of 4, 4 and 3 in a step of 11 pairs, two steps a log."""
    trainer = build(
        dataset.select(range(11)),
        tmp_path,
        tokenizer,
        fitted_teacher,
        gradient_accumulation_steps=3,
        max_steps=4,
        logging_steps=2,
        learning_rate=1e-2,
    )
    trainer.train()
    start, seen = seen[:11], seen[11:]
    assert len(seen) == 44
    for scope, name in NAMES.items():
        logged = losses(trainer, f"interaction/{name}")
        assert logged == pytest.approx([expected(each, scope) for each in (start, seen[:22], seen[22:])], abs=1e-5)


def test_the_start_is_a_sample_and_moves_no_random_number(dataset, tmp_path, tokenizer, fitted_teacher, monkeypatch):
    monkeypatch.setattr(learning, "START_PAIRS", 6)
    runs = {}
    for kind in ("measured", "not measured"):
        if kind == "not measured":
            monkeypatch.setattr(InteractionDistillationTrainer, "log_start", lambda self: None)
        student = build_student()
        student.config.attention_dropout = 0.2
        for layer in student.model.layers:
            layer.self_attn.attention_dropout = 0.2
        trainer = build(dataset, tmp_path, tokenizer, fitted_teacher, student=student)
        trainer.train()
        runs[kind] = weights(trainer)
        if kind == "measured":
            first = trainer.state.log_history[0]
            rows = dataset.select([3, 7, 11, 15, 19, 23])
            fresh = build(dataset, tmp_path, tokenizer, fitted_teacher).evaluate(rows)
            assert first["step"] == 0 and {key for key in first if "/" in key} == {
                f"interaction/{name}" for name in NAMES.values()
            }
            assert first["interaction/explained"] == pytest.approx(fresh["eval_interaction/explained"], rel=0.05)
    assert all(torch.equal(value, runs["not measured"][name]) for name, value in runs["measured"].items())


def test_a_resumed_run_does_not_measure_the_start_again(dataset, tmp_path, tokenizer, fitted_teacher):
    saved = {"save_strategy": "steps", "save_steps": 2}
    build(dataset, tmp_path, tokenizer, fitted_teacher, max_steps=2, **saved).train()
    trainer = build(dataset, tmp_path, tokenizer, fitted_teacher, max_steps=4, **saved)
    trainer.train(resume_from_checkpoint=True)
    entries = [entry for entry in trainer.state.log_history if "interaction/explained" in entry]
    assert [entry["step"] for entry in entries] == [0, 1, 2, 3, 4]


def test_mse_is_measured_by_the_same_share(dataset, tmp_path, tokenizer, fitted_teacher):
    found = []
    for loss in ("kl", "mse"):
        trainer = build(dataset, tmp_path, tokenizer, fitted_teacher, alignment_loss=loss, max_steps=1)
        trainer.train()
        found.append([losses(trainer, f"interaction/{name}") for name in NAMES.values()])
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_streams_are_measured_from_their_first_rows(dataset, tmp_path, tokenizer, fitted_teacher, monkeypatch, seen):
    monkeypatch.setattr(learning, "START_PAIRS", 3)
    trainer = build(dataset.to_iterable_dataset(), tmp_path, tokenizer, fitted_teacher, max_steps=1)
    trainer.train()
    start, first = losses(trainer, "interaction/explained")
    assert start == pytest.approx(expected(seen[:3], "joint"), abs=1e-5)
    assert first == pytest.approx(expected(seen[3:], "joint"), abs=1e-5)


@pytest.mark.parametrize("scope", ["joint", "inter"])
def test_little_learnt_is_said_with_what_to_do(dataset, tmp_path, tokenizer, fitted_teacher, caplog, scope):
    trainer = build(dataset, tmp_path, tokenizer, fitted_teacher, alignment_scope=scope)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    start, *_, end = losses(trainer, f"interaction/{NAMES[scope]}")
    assert end < LITTLE_EXPLAINED and trainer.explained_share() == (start, end)
    message = next(record.message for record in caplog.records if "learnt little" in record.message)
    assert f"`interaction/{NAMES[scope]}` is {end:.2f} at the end of training ({start:.2f} before it)" in message
    for remedy in ("`alignment_weight` (0.3)", "`learning_rate` (0.001)", "more steps (3)", "`student_layers` [-1]"):
        assert remedy in message, remedy


def test_a_map_that_was_learnt_is_no_warning(dataset, tmp_path, tokenizer, fitted_teacher, caplog, monkeypatch):
    monkeypatch.setattr(learning, "LITTLE_EXPLAINED", -5.0)
    build(dataset, tmp_path, tokenizer, fitted_teacher, max_steps=1).train()
    assert "learnt little" not in caplog.text


@pytest.mark.parametrize("control", ["uniform", "shuffled"])
def test_controls_are_not_warned_of(dataset, tmp_path, tokenizer, fitted_teacher, caplog, control):
    trainer = build(dataset, tmp_path, tokenizer, fitted_teacher, alignment_control=control, max_steps=1)
    trainer.train()
    assert not re.search("learnt little|is not logged", caplog.text)
    assert bool(losses(trainer, "interaction/explained")) == (control == "shuffled")


def test_a_teacher_with_equal_attention_is_said(dataset, tmp_path, tokenizer, fitted_teacher, caplog):
    fitted_teacher.interaction_layers = 0  # one row a pair, in which each word is once
    rows = Dataset.from_list([{"prompt": "a", "chosen": " a", "rejected": " a a"}] * 4)
    for layer in fitted_teacher.network.encoder.encoder.layer:
        torch.nn.init.zeros_(layer.attention.self.query.weight)
        torch.nn.init.zeros_(layer.attention.self.query.bias)
    trainer = build(rows, tmp_path, tokenizer, fitted_teacher, max_steps=1)
    trainer.train()
    assert "`interaction/explained` is not logged: the teacher attends equally" in caplog.text
    assert not losses(trainer, "interaction/explained")


def test_without_alignment_nothing_of_this_happens(dataset, tmp_path, tokenizer, caplog):
    trainer = build(dataset, tmp_path, tokenizer, None, alignment_weight=0, eval_dataset=dataset.select(range(4)))
    trainer.train()
    trainer.evaluate()
    assert not [key for entry in trainer.state.log_history for key in entry if "interaction" in key]
    assert trainer.state.log_history[0]["step"] == 1 and "learnt" not in caplog.text


def test_the_cards_picture_is_of_the_aligned_layers_before_and_after(
    dataset, tmp_path, tokenizer, fitted_teacher, monkeypatch
):
    drawn = []
    monkeypatch.setattr(publishing, "draw_example_maps", lambda maps, path: drawn.append(maps))
    fitted_teacher.interaction_layers = 3
    layers = {"student_layers": [-1, 0], "teacher_layers": [-1, 1]}
    trainer = build(dataset, tmp_path, tokenizer, fitted_teacher, learning_rate=1e-2, **layers)
    fresh = trainer.example_maps("fresh")
    trainer.train()
    trainer.create_model_card()
    (maps,) = drawn
    assert list(maps.maps) == ["teacher", "student before training", "student after training"]
    torch.testing.assert_close(maps.maps["student before training"], fresh.maps["fresh"])
    assert not torch.allclose(maps.maps["student after training"], fresh.maps["fresh"], atol=1e-4)
    text = {"prompt": _PROMPT, "chosen": _CHOSEN, "rejected": _REJECTED}
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    row = {key: [{"role": roles[key], "content": value}] for key, value in text.items()}
    scorer = RewardScorer(trainer.model, tokenizer)
    wanted = pair_maps(row, fitted_teacher, {"own": scorer}, student_layer=0, teacher_layer=1)
    torch.testing.assert_close(maps.maps["teacher"], wanted.maps["teacher"])
    torch.testing.assert_close(maps.maps["student after training"], wanted.maps["own"])
    assert maps.explained["student after training"] == pytest.approx(wanted.explained["own"])
