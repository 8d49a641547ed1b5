"""Training with the teacher's maps from the disk equals training with the teacher live."""

from __future__ import annotations

import logging

import pytest
import torch
from datasets import Dataset
from support.models import build_encoder, build_student, needs_liftable_masks
from support.tokenizers import tokenizer_of
from support.training_runs import config

from hf_interdistill import InteractionDistillationTrainer, InteractionTeacher
from hf_interdistill.interaction.data.orders import choose_order
from hf_interdistill.interaction.map_cache.cached_teacher import teacher_digest

KEYS = ("loss", "interaction/loss", "interaction/intra", "interaction/inter", "interaction/teacher_accuracy")


@pytest.fixture
def teacher():
    """One that encodes a pair in one row, so that the order matters."""
    return InteractionTeacher(*build_encoder(), max_length=256, interaction_layers=0)


@pytest.fixture
def data(rows) -> Dataset:
    return Dataset.from_list([{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows[:8]])


@pytest.fixture
def computed(monkeypatch, no_pictures) -> list[int]:
    """Pairs of each call of the teacher."""
    calls: list[int] = []
    forward = InteractionTeacher.forward

    def counting(self, batch, order, layers, units):
        calls.append(len(batch["input_ids"]))
        return forward(self, batch, order, layers, units)

    monkeypatch.setattr(InteractionTeacher, "forward", counting)
    return calls


def make(folder, data, teacher, tokenizer=None, **changes) -> InteractionDistillationTrainer:
    evaluation = changes.pop("eval_dataset", None)
    return InteractionDistillationTrainer(
        build_student(),
        config(folder, **{"alignment_weight": 1.0, **changes}),
        train_dataset=data,
        eval_dataset=evaluation,
        processing_class=tokenizer or tokenizer_of("bytes"),
        teacher=teacher,
    )


def trained(folder, data, teacher, **changes) -> InteractionDistillationTrainer:
    trainer = make(folder, data, teacher, **changes)
    trainer.train()
    return trainer


def logs(trainer) -> list[dict]:
    return [
        {key: float(entry[key]) for key in KEYS} for entry in trainer.state.log_history if "interaction/loss" in entry
    ]


def assert_equal(one, other, rel: float) -> None:
    assert len(logs(one)) == len(logs(other)) > 0
    for first, second in zip(logs(one), logs(other), strict=True):
        assert first == pytest.approx(second, rel=rel, abs=1e-9)


def assert_same_bits(one, other) -> None:
    assert logs(one) == logs(other)
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


def test_exact_maps_train_as_the_teacher_does_and_it_runs_once_per_pair(data, tmp_path, fitted_teacher, computed):
    live = trained(tmp_path, data, fitted_teacher, max_steps=6)  # three epochs, so most pairs come in both orders
    assert sum(computed) == 8 + 24  # the start, and the epochs
    cache = {"teacher_cache": str(tmp_path / "cache"), "teacher_cache_precision": "exact", "max_steps": 6}
    computed.clear()
    cached = trained(tmp_path, data, fitted_teacher, **cache)
    assert computed == [4, 4, 4, 4]  # both orders in the first epoch, nothing after it
    assert_equal(live, cached, rel=2e-5)
    for name, value in live.model.state_dict().items():
        torch.testing.assert_close(value, cached.model.state_dict()[name], rtol=1e-3, atol=1e-4)
    assert {key for entry in live.state.log_history for key in entry} == {
        key for entry in cached.state.log_history for key in entry
    }
    computed.clear()
    assert_same_bits(cached, trained(tmp_path, data, fitted_teacher, **cache))
    assert not computed


@pytest.mark.parametrize("family", [pytest.param("decoder", marks=needs_liftable_masks), "mpnet"])
def test_decoders_and_encoders_with_position_terms_teach_from_a_cache_too(data, tmp_path, computed, family):
    """The decoder has the student's own tokenizer."""
    model, tokenizer = build_encoder("mpnet") if family == "mpnet" else (build_student(seed=1), tokenizer_of("bytes"))
    teacher = InteractionTeacher(model, tokenizer, max_length=256, metrics={"accuracy": 0.7, "pairs": 9})
    teacher.metrics["is_better_than_chance"] = True
    live = trained(tmp_path, data, teacher, max_steps=4)
    assert all(0 < entry["interaction/loss"] < float("inf") for entry in logs(live))
    computed.clear()
    cache = {"teacher_cache": str(tmp_path / "cache"), "teacher_cache_precision": "exact"}
    assert_equal(live, trained(tmp_path, data, teacher, max_steps=4, **cache), rel=2e-5)
    assert sum(computed) == (16 if teacher.interaction_layers == 0 else 8)


@needs_liftable_masks
def test_a_decoder_with_and_without_its_mask_has_two_digests():
    teacher = InteractionTeacher(build_student(), tokenizer_of("bytes"), max_length=256)
    lifted = teacher_digest(teacher)
    teacher.network.encoder.config.is_causal = True
    assert teacher_digest(teacher) != lifted


def test_8bit_is_near_and_does_not_depend_on_what_was_there(data, tmp_path, fitted_teacher, computed, caplog):
    live = trained(tmp_path, data, fitted_teacher, max_steps=4)
    computed.clear()
    with caplog.at_level(logging.INFO):
        cold = trained(tmp_path, data, fitted_teacher, max_steps=4, teacher_cache=str(tmp_path / "cache"))
    assert "16 (one per pair and reading order) of " in caplog.text and "KiB on average" in caplog.text
    warm = trained(tmp_path, data, fitted_teacher, max_steps=4, teacher_cache=str(tmp_path / "cache"))
    assert sum(computed) == 16
    assert_same_bits(cold, warm)
    first, stored = logs(live)[0], logs(cold)[0]
    print({key: abs(first[key] - stored[key]) for key in KEYS})
    assert 0 < abs(first["interaction/loss"] - stored["interaction/loss"]) < 2e-3 * first["interaction/loss"]
    assert first["interaction/teacher_accuracy"] == stored["interaction/teacher_accuracy"]
    coarse = trained(
        tmp_path, data, fitted_teacher, max_steps=1, teacher_cache=str(tmp_path / "cache"), teacher_cache_top_k=3
    )
    assert abs(logs(coarse)[0]["interaction/loss"] - first["interaction/loss"]) > 2e-3 * first["interaction/loss"]


def test_maps_of_late_interaction_are_computed_once(data, tmp_path, fitted_teacher, computed):
    fitted_teacher.interaction_layers = 1
    live = trained(tmp_path, data, fitted_teacher, max_steps=4)
    computed.clear()
    cache = {"teacher_cache": str(tmp_path / "cache"), "teacher_cache_precision": "exact"}
    cached = trained(tmp_path, data, fitted_teacher, max_steps=4, **cache)
    assert sum(computed) == len(data)  # two epochs, both orders
    assert_equal(live, cached, rel=2e-5)


OPTIONS = [
    {"alignment_scope": "inter", "alignment_loss": "mse", "share_prompt": "false"},
    {"alignment_control": "shuffled", "alignment_scope": "intra", "gradient_accumulation_steps": 2},
    {"alignment_control": "uniform", "student_layers": [0, -1], "teacher_layers": [0, -1]},
    {"bf16": True},
    {"teacher_max_length": 48},
]


def test_options_equal_the_live_teacher_in_one_shared_folder(data, tmp_path, fitted_teacher, computed):
    cache = {"teacher_cache": str(tmp_path / "cache"), "teacher_cache_precision": "exact"}
    trained(tmp_path, data, fitted_teacher, **cache)
    for option in OPTIONS:
        live = trained(tmp_path, data, fitted_teacher, max_steps=1, **option)
        computed.clear()
        cached = trained(tmp_path, data, fitted_teacher, max_steps=1, **option, **cache)
        changes_the_maps = option.keys() & {"teacher_layers", "bf16", "teacher_max_length"}
        assert bool(computed) == bool(changes_the_maps), option
        assert_equal(live, cached, rel=2e-2 if "bf16" in option else 2e-5)
    folders = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(folders) == 3  # layers and precision have their own; length is in each pair's key


def test_what_changes_the_maps_finds_no_others(data, tmp_path, fitted_teacher, computed):
    """Another teacher, score head, config, student tokenizer: each is computed again and equals its live run."""
    cache = {"teacher_cache": str(tmp_path / "cache"), "teacher_cache_precision": "exact", "max_steps": 1}
    trained(tmp_path, data, fitted_teacher, **cache)
    seen = {teacher_digest(fitted_teacher)}

    def variant(change, **encoder) -> InteractionTeacher:
        teacher = InteractionTeacher(
            *build_encoder(**encoder), max_length=256, interaction_layers=0, metrics=fitted_teacher.metrics
        )
        teacher.network.score.load_state_dict(fitted_teacher.network.score.state_dict())
        change(teacher)
        return teacher

    def nudge(teacher):
        with torch.no_grad():
            teacher.network.encoder.encoder.layer[1].output.dense.weight[0, 0] += 0.5

    assert teacher_digest(variant(lambda teacher: None)) in seen
    teachers = [
        variant(nudge),
        variant(lambda teacher: teacher.network.score.weight.data.neg_()),
        variant(lambda teacher: None, hidden_act="relu"),
    ]
    runs = [(teacher, tokenizer_of("bytes")) for teacher in teachers] + [(fitted_teacher, tokenizer_of("metaspace"))]
    for teacher, tokenizer in runs:
        computed.clear()
        cached = trained(tmp_path, data, teacher, tokenizer=tokenizer, **cache)
        assert sum(computed) == 8  # all are read at the start
        live = trained(tmp_path, data, teacher, tokenizer=tokenizer, max_steps=1)
        assert_equal(live, cached, rel=2e-5)
        seen.add(teacher_digest(teacher))
    assert len(seen) == 4


def test_a_teacher_that_trains_further_is_computed_anew(data, tmp_path, fitted_teacher, computed):
    trainer = trained(tmp_path, data, fitted_teacher, teacher_cache=str(tmp_path / "cache"), max_steps=2)
    computed.clear()
    with torch.no_grad():
        fitted_teacher.network.encoder.encoder.layer[0].output.dense.weight.mul_(1.5)
    trainer.train()
    assert sum(computed) == 8


def test_resumed_run_equals_an_unbroken_one(data, tmp_path, fitted_teacher, computed):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 3}
    whole = trained(tmp_path / "whole", data, fitted_teacher, teacher_cache=str(tmp_path / "a"), **settings)
    computed.clear()
    for cache, count in (("a", 0), ("b", 1)):  # the cache of the run that broke off, and an empty one
        resumed = make(tmp_path / "whole", data, fitted_teacher, teacher_cache=str(tmp_path / cache), **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "rm" / "checkpoint-3"))
        assert bool(computed) == bool(count)
        for name, value in whole.model.state_dict().items():
            torch.testing.assert_close(value, resumed.model.state_dict()[name], rtol=0, atol=1e-6 * count)


def test_damaged_and_cut_shards_are_computed_anew_with_a_warning(data, tmp_path, fitted_teacher, computed, caplog):
    cache = {"teacher_cache": str(tmp_path / "cache"), "max_steps": 4}
    whole = trained(tmp_path, data, fitted_teacher, **cache)
    (path,) = (tmp_path / "cache").glob("*/maps-*.bin")
    content = bytearray(path.read_bytes())
    for part in (0.2, 0.4, 0.6, 0.8):
        content[int(part * len(content))] ^= 0xFF
    path.write_bytes(content[:-100])
    computed.clear()
    mended = trained(tmp_path, data, fitted_teacher, **cache)
    assert 2 <= sum(computed) <= 5 and "damaged" in caplog.text
    assert_equal(whole, mended, rel=1e-4)  # read in other batches, so rounded otherwise
    computed.clear()
    assert_same_bits(mended, trained(tmp_path, data, fitted_teacher, **cache))
    assert not computed


def test_streams_and_evaluation_sets(data, tmp_path, fitted_teacher, computed):
    cache = {"teacher_cache": str(tmp_path / "cache"), "teacher_cache_precision": "exact"}
    sets = {"a": data.select(range(3)), "b": data.select(range(3, 8))}
    live = make(tmp_path, data, fitted_teacher, eval_dataset=sets).evaluate()
    computed.clear()
    trainer = make(tmp_path, data, fitted_teacher, eval_dataset=sets, **cache)
    cached = trainer.evaluate()
    assert sum(computed) == 8  # one order: that of every evaluation
    wanted = [key for key in live if "interaction" in key or "loss" in key]
    names = ("loss", "interaction/loss", "interaction/teacher_accuracy")
    assert {f"eval_{name}_{key}" for name in "ab" for key in names} <= set(wanted)
    for key in wanted:
        assert cached[key] == pytest.approx(live[key], rel=2e-5), key
    assert trainer.evaluate()["eval_a_loss"] == cached["eval_a_loss"] and sum(computed) == 8
    stream = trained(tmp_path, data.to_iterable_dataset(), fitted_teacher, max_steps=2, **cache)
    pair_keys = torch.tensor(trainer.train_dataset["pair_key"])
    first, evaluated = (choose_order(pair_keys, stream.args.seed, visit) for visit in (1, 0))
    assert sum(computed) == 8 + int((first != evaluated).sum()) > 8  # a stream computed the order that it needs
    assert_equal(trained(tmp_path, data.to_iterable_dataset(), fitted_teacher, max_steps=2), stream, rel=2e-5)


def test_settings_are_checked(data, tmp_path, fitted_teacher):
    with pytest.raises(ValueError, match=r"`teacher_cache_top_k` 8, but no maps are kept: set `teacher_cache`"):
        config(tmp_path, teacher_cache_top_k=8)
    with pytest.raises(ValueError, match=r"`teacher_cache_precision` is 'exact'.*no maps are kept"):
        config(tmp_path, teacher_cache_precision="exact")
    with pytest.raises(ValueError, match=r"`teacher_cache_top_k` is 8.*'exact' stores all"):
        config(tmp_path, teacher_cache="c", teacher_cache_top_k=8, teacher_cache_precision="exact")
    with pytest.raises(ValueError, match=r"`teacher_cache_top_k` is 0.*at least 1"):
        config(tmp_path, teacher_cache="c", teacher_cache_top_k=0)
    with pytest.raises(ValueError, match=r"`teacher_cache_precision` is '4bit'.*8bit, exact"):
        config(tmp_path, teacher_cache="c", teacher_cache_precision="4bit")
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match=r"`teacher_cache` .*maps would not be kept. Choose another folder"):
        make(tmp_path, data, fitted_teacher, teacher_cache=str(tmp_path / "file" / "cache"))
