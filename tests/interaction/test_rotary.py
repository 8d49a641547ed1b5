"""Queries and keys from before rotary positions are those that the model's rotation turns into what it compares."""

from __future__ import annotations

import importlib
import threading

import pytest
import torch
from conftest import STUDENT_FAMILIES, build_student
from interaction.training_runs import config, losses
from test_recording_and_inspection import inputs

from hf_interdistill import InteractionDistillationTrainer
from hf_interdistill.interaction.attention.recorder import AttentionRecorder

WHOLE = [family for family in STUDENT_FAMILIES if family != "gpt2"]


def recorded(model, rope, **changes):
    with torch.no_grad(), AttentionRecorder(model, [0, 2], rope) as recorder:
        logits = model(**{**inputs(), **changes}).logits
    return logits, recorder.records


def turned(states, cos, sin):
    """Rotation of each half's numbers with the other's, written out."""
    half = cos.shape[-1] // 2
    first, second, rest = states[..., :half], states[..., half : 2 * half], states[..., 2 * half :]
    cos, sin = cos[:, None, :, :half], sin[:, None, :, :half]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


@pytest.mark.parametrize("family", WHOLE)
def test_turned_by_hand_they_are_what_is_compared(family):
    model = build_student(family, "eager").eval()
    rotary, seen = getattr(model, model.base_model_prefix).rotary_emb, []
    rotary.register_forward_hook(lambda module, args, output: seen.append(output))
    plain, after = recorded(model, "after")
    logits, before = recorded(model, "before")
    assert torch.equal(plain, logits)
    for own, other in zip(before, after, strict=True):
        assert (own.scaling, own.softcap, own.window) == (other.scaling, other.softcap, other.window)
        tables = [table for table in seen if torch.allclose(turned(own.query, *table), other.query, atol=1e-5)]
        assert tables, "none of the model's rotations gives what it compares"
        assert torch.allclose(turned(own.key, *tables[0]), other.key, atol=1e-5)
        assert not torch.allclose(own.query, other.query, atol=1e-2)


def test_they_know_no_distance():
    model, places = build_student().eval(), torch.arange(20)[None].expand(3, -1)
    for rope, is_same in (("before", True), ("after", False)):
        near, far = (recorded(model, rope, position_ids=factor * places)[1][0] for factor in (1, 3))
        assert torch.allclose(near.query, far.query, atol=1e-5) == is_same
        assert torch.allclose(near.key, far.key, atol=1e-5) == is_same


def test_the_model_file_is_as_it_was():
    file = importlib.import_module("transformers.models.llama.modeling_llama")
    turn = file.apply_rotary_pos_emb
    recorded(build_student(), "before")
    assert file.apply_rotary_pos_emb is turn
    with pytest.raises(RuntimeError, match="broken"), AttentionRecorder(build_student(), [0], "before"):
        raise RuntimeError("broken")
    assert file.apply_rotary_pos_emb is turn


def test_another_model_of_the_same_file_may_run_in_another_thread():
    """Here between each turn and its attention."""
    file = importlib.import_module("transformers.models.llama.modeling_llama")
    model, other, own = build_student().eval(), build_student(seed=1).eval(), threading.current_thread()
    _, alone = recorded(model, "before")
    with torch.no_grad(), AttentionRecorder(model, [0, 2], "before") as recorder:
        noting = file.apply_rotary_pos_emb

        def beside(*args, **kwargs):
            turned = noting(*args, **kwargs)
            if threading.current_thread() is own:
                thread = threading.Thread(target=lambda: other(**inputs()))
                thread.start()
                thread.join()
            return turned

        file.apply_rotary_pos_emb = beside
        model(**inputs())
    for one, two in zip(alone, recorder.records, strict=True):
        assert torch.equal(one.query, two.query) and torch.equal(one.key, two.key)


def test_models_that_have_none_or_turn_a_part_are_refused(tmp_path, dataset, tokenizer, fitted_teacher):
    common = {"train_dataset": dataset, "processing_class": tokenizer, "teacher": fitted_teacher}
    args = config(tmp_path, alignment_rope="before")
    with pytest.raises(ValueError, match=r"GPT2ForSequenceClassification has no rotary positions .* Use 'after'"):
        InteractionDistillationTrainer(build_student("gpt2"), args, **common)
    trainer = InteractionDistillationTrainer(build_student("stablelm"), args, **common)
    with pytest.raises(
        ValueError, match=r"layer 2 of StableLmForSequenceClassification does not compare .* Use 'after'"
    ):
        trainer.train()
    with pytest.raises(ValueError, match="`alignment_rope` is 'never', but must be one of after, before"):
        config(tmp_path, alignment_rope="never")


@pytest.mark.parametrize("changes", [{"share_prompt": "false"}, {"gradient_checkpointing": True}])
def test_one_row_and_checkpointing_change_nothing(changes, tmp_path, dataset, tokenizer, fitted_teacher):
    runs = []
    for own in ({}, changes):
        settings = {"alignment_rope": "before", "alignment_weight": 1.0, "gradient_checkpointing": False, **own}
        trainer = InteractionDistillationTrainer(
            build_student(),
            config(tmp_path, **settings),
            train_dataset=dataset,
            processing_class=tokenizer,
            teacher=fitted_teacher,
        )
        trainer.train()
        runs.append((losses(trainer, "interaction/loss"), losses(trainer, "grad_norm")))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-4) and runs[0][1] == pytest.approx(runs[1][1], rel=1e-3)
