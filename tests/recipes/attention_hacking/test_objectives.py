"""The objective of the study: rows of some units, queries and keys from before rotary positions."""

from __future__ import annotations

import importlib
import threading

import pytest
import torch
from support.models import STUDENT_FAMILIES, build_student
from support.training_runs import COMMON, losses

from hf_interdistill.interaction.attention.map_sources import DenseMapSource
from hf_interdistill.interaction.attention.maps import AttentionMap, UnitTokens
from hf_interdistill.interaction.attention.recorder import AttentionRecorder
from hf_interdistill.interaction.losses.alignment import alignment_loss

ROTARY_FAMILIES = [family for family in STUDENT_FAMILIES if family != "gpt2"]


def inputs():
    ids = torch.randint(4, 900, (3, 20), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}


def trainer_of(modules, tmp_path, dataset, tokenizer, teacher, student=None, **options):
    args = modules.objectives.StudyConfig(output_dir=str(tmp_path / "rm"), **{**COMMON, **options})
    common = {"train_dataset": dataset, "processing_class": tokenizer, "teacher": teacher}
    return modules.objectives.ObjectiveTrainer(student or build_student(), args, **common)


def test_query_mask_by_hand(modules):
    segments = torch.tensor([[0, 0, 1, 1, 2, 2, -1], [0, 1, -1, -1, -1, -1, -1]])
    shared = (segments >= 0) & torch.tensor([[1, 0, 1, 1, 1, 0, 1], [1] * 7]).bool()
    masks = {
        queries: modules.objectives.query_mask(shared, segments, queries).int().tolist()
        for queries in ("all", "response", "last")
    }
    assert masks == {
        "all": [[1, 0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0]],
        "response": [[0, 0, 1, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0]],
        "last": [[0, 0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0]],
    }


def test_layer_loss_aligns_the_units_of_the_option(modules):
    """The last unit is one that the teacher has not read: the one before it is the last of its response."""
    generator = torch.Generator().manual_seed(0)
    segments = torch.tensor([[0, 0, 1, 1, 2, 2]])
    units = torch.arange(6)[None]
    query, key = (torch.randn(1, 2, 6, 4, generator=generator) for _ in range(2))
    student = AttentionMap(query, key, UnitTokens.from_units(units, units >= 0, 6), 0.5, None)
    present = torch.tensor([[True] * 5 + [False]])
    teacher = DenseMapSource(torch.rand(1, 6, 6, generator=generator), present)
    rows = {"all": [0, 1, 2, 3, 4], "response": [2, 3, 4], "last": [3, 4]}
    for queries, expected in rows.items():
        settings = modules.objectives.StudySettings(alignment_queries=queries)
        objective = modules.objectives.StudyObjective(None, settings)
        mask = torch.zeros(1, 6, dtype=torch.bool)
        mask[0, expected] = True
        wanted = alignment_loss(student, teacher, segments, query_mask=mask)
        assert torch.equal(objective.layer_loss(student, teacher, segments).loss, wanted.loss)


def test_each_option_changes_the_loss(modules, tmp_path, dataset, tokenizer, fitted_teacher):
    seen = set()
    for option in ({}, {"alignment_queries": "response"}, {"alignment_queries": "last"}, {"alignment_rope": "before"}):
        trainer = trainer_of(modules, tmp_path, dataset, tokenizer, fitted_teacher, max_steps=1, **option)
        trainer.train()
        seen.add(losses(trainer, "interaction/loss")[0])
    assert len(seen) == 4


def recorded(model, make_recorder, **changes):
    with torch.no_grad(), make_recorder(model, [0, 2]) as recorder:
        logits = model(**{**inputs(), **changes}).logits
    return logits, recorder.records


def rotated(states, cos, sin):
    """Rotary positions, written out."""
    half = cos.shape[-1] // 2
    first, second, rest = states[..., :half], states[..., half : 2 * half], states[..., 2 * half :]
    cos, sin = cos[:, None, :, :half], sin[:, None, :, :half]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


@pytest.mark.parametrize("family", ROTARY_FAMILIES)
def test_unrotated_states_rotated_by_hand_equal_the_models(modules, family):
    model = build_student(family, "eager").eval()
    rotary, seen = getattr(model, model.base_model_prefix).rotary_emb, []
    rotary.register_forward_hook(lambda module, args, output: seen.append(output))
    plain, after = recorded(model, AttentionRecorder)
    logits, before = recorded(model, modules.rotary.RotaryRecorder)
    assert torch.equal(plain, logits)
    for own, other in zip(before, after, strict=True):
        assert (own.scaling, own.softcap, own.window) == (other.scaling, other.softcap, other.window)
        tables = [table for table in seen if torch.allclose(rotated(own.query, *table), other.query, atol=1e-5)]
        assert tables, "none of the model's rotations gives what it multiplies"
        assert torch.allclose(rotated(own.key, *tables[0]), other.key, atol=1e-5)
        assert not torch.allclose(own.query, other.query, atol=1e-2)


def test_unrotated_states_do_not_depend_on_positions(modules):
    model, positions = build_student().eval(), torch.arange(20)[None].expand(3, -1)
    for make_recorder, is_same in ((modules.rotary.RotaryRecorder, True), (AttentionRecorder, False)):
        near, far = (recorded(model, make_recorder, position_ids=factor * positions)[1][0] for factor in (1, 3))
        assert torch.allclose(near.query, far.query, atol=1e-5) == is_same
        assert torch.allclose(near.key, far.key, atol=1e-5) == is_same


def test_the_model_file_is_restored(modules):
    file = importlib.import_module("transformers.models.llama.modeling_llama")
    rotate = file.apply_rotary_pos_emb
    recorded(build_student(), modules.rotary.RotaryRecorder)
    assert file.apply_rotary_pos_emb is rotate
    with pytest.raises(RuntimeError, match="broken"), modules.rotary.RotaryRecorder(build_student(), [0]):
        raise RuntimeError("broken")
    assert file.apply_rotary_pos_emb is rotate


def test_another_model_of_the_same_file_may_run_in_another_thread(modules):
    """It runs between each rotation and its attention."""
    file = importlib.import_module("transformers.models.llama.modeling_llama")
    model, other, own = build_student().eval(), build_student(seed=1).eval(), threading.current_thread()
    _, alone = recorded(model, modules.rotary.RotaryRecorder)
    with torch.no_grad(), modules.rotary.RotaryRecorder(model, [0, 2]) as recorder:
        wrapped = file.apply_rotary_pos_emb

        def beside(*args, **kwargs):
            result = wrapped(*args, **kwargs)
            if threading.current_thread() is own:
                thread = threading.Thread(target=lambda: other(**inputs()))
                thread.start()
                thread.join()
            return result

        file.apply_rotary_pos_emb = beside
        model(**inputs())
    for one, two in zip(alone, recorder.records, strict=True):
        assert torch.equal(one.query, two.query) and torch.equal(one.key, two.key)


def test_models_without_full_rotary_positions_are_refused(modules, tmp_path, dataset, tokenizer, fitted_teacher):
    common = (modules, tmp_path, dataset, tokenizer, fitted_teacher)
    with pytest.raises(ValueError, match=r"GPT2ForSequenceClassification has no rotary positions\. Use 'after'"):
        trainer_of(*common, build_student("gpt2"), alignment_rope="before")
    trainer = trainer_of(*common, build_student("stablelm"), alignment_rope="before")
    with pytest.raises(
        ValueError, match=r"layer 2 of StableLmForSequenceClassification are not the output .* 'after'"
    ):
        trainer.train()
    with pytest.raises(ValueError, match="`alignment_rope` is 'never', but must be one of after, before"):
        trainer_of(*common, alignment_rope="never")


@pytest.mark.parametrize("changes", [{"share_prompt": "false"}, {"gradient_checkpointing": True}])
def test_packing_and_checkpointing_change_nothing(changes, modules, tmp_path, dataset, tokenizer, fitted_teacher):
    runs = []
    for own in ({}, changes):
        settings = {"alignment_rope": "before", "alignment_weight": 1.0, "gradient_checkpointing": False, **own}
        trainer = trainer_of(modules, tmp_path, dataset, tokenizer, fitted_teacher, **settings)
        trainer.train()
        runs.append((losses(trainer, "interaction/loss"), losses(trainer, "grad_norm")))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-4) and runs[0][1] == pytest.approx(runs[1][1], rel=1e-3)
