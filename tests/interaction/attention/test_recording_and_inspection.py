"""Recording changes nothing in the model, and what it records is what the model used."""

from __future__ import annotations

import pytest
import torch
from support.models import STUDENT_FAMILIES, build_student
from support.tokenizers import tokenizer_of
from transformers import AttentionInterface

from hf_interdistill import RewardScorer
from hf_interdistill.interaction.attention.interceptor import layer_of_modules
from hf_interdistill.interaction.attention.recorder import AttentionRecorder, resolve_layers
from hf_interdistill.interaction.inspection import PairMaps, pair_maps, plot_maps
from hf_interdistill.interaction.losses.schedules import ALIGNMENT_SCHEDULES, scheduled_weight


def inputs(batch=3, length=20):
    ids = torch.randint(4, 900, (batch, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    ids[1, 15:] = 3
    return {"input_ids": ids, "attention_mask": mask, "use_cache": False}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", STUDENT_FAMILIES)
def test_outputs_are_untouched_and_attention_is_reproduced(family, attention):
    if (family, attention) == ("gemma2", "sdpa"):
        pytest.skip("transformers offers no sdpa for Gemma 2: its scores are capped")
    model = build_student(family, attention).eval()
    before = dict(AttentionInterface._global_mapping)
    with torch.no_grad():
        plain = model(**inputs()).logits
        with AttentionRecorder(model, [0, 2]) as recorder:
            recorded = model(**inputs()).logits
    assert torch.equal(plain, recorded)
    assert AttentionInterface._global_mapping == before
    eager = build_student(family, "eager").eval()
    with torch.no_grad():
        attentions = eager(**inputs(), output_attentions=True).attentions
    for layer, record in zip((0, 2), recorder.records, strict=True):
        groups = record.query.shape[1] // record.key.shape[1]
        scores = record.query @ record.key.repeat_interleave(groups, 1).transpose(2, 3) * record.scaling
        if record.softcap is not None:
            scores = record.softcap * torch.tanh(scores / record.softcap)
        length = scores.shape[-1]
        causal = torch.ones(length, length).tril().bool()
        if record.window is not None:
            causal &= torch.ones(length, length).tril(-record.window).logical_not()
        weights = scores.masked_fill(~causal, float("-inf")).softmax(-1)
        torch.testing.assert_close(weights[0], attentions[layer][0], rtol=1e-3, atol=1e-4)


def test_autocast_is_recorded_as_attention_multiplies():
    """Rotary positions make float32 of bfloat16 queries and keys, and autocast bfloat16 of these again."""
    model = build_student().eval()
    with torch.no_grad(), AttentionRecorder(model, [1]) as plain:
        model(**inputs())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), AttentionRecorder(model, [1]) as recorder:
        model(**inputs())
    assert plain.records[0].query.dtype == torch.float32
    for lowered, states in (
        (recorder.records[0].query, plain.records[0].query),
        (recorder.records[0].key, plain.records[0].key),
    ):
        assert lowered.dtype == torch.bfloat16
        torch.testing.assert_close(lowered.float(), states, rtol=0.1, atol=0.1)


def test_recording_ignores_other_models_and_nests():
    one, other = build_student(seed=0).eval(), build_student(seed=1).eval()
    with torch.no_grad(), AttentionRecorder(one, [1]) as outer:
        with AttentionRecorder(other, [1]) as inner:
            other(**inputs())
            one(**inputs())
        other(**inputs())
    assert not torch.equal(outer.records[0].query, inner.records[0].query)


def test_nothing_stays_registered_after_an_error():
    model = build_student("llama", "eager").eval()
    before = dict(AttentionInterface._global_mapping)
    with pytest.raises(RuntimeError, match="mid-forward"), AttentionRecorder(model, [0]):
        raise RuntimeError("mid-forward")
    assert AttentionInterface._global_mapping == before and "eager" not in before
    with pytest.raises(ValueError, match="Layer 0 did no softmax attention"), AttentionRecorder(model, [0]):
        pass
    with (
        pytest.raises(ValueError, match="Layer 0 ran 2 times"),
        torch.no_grad(),
        AttentionRecorder(model, [0]),
    ):
        model(**inputs())
        model(**inputs())


def test_layers_by_name_and_number():
    layers = layer_of_modules(build_student())
    assert sorted(set(layers.values())) == [0, 1, 2]
    assert resolve_layers([-1, 0, 2], 3, "student_layers") == [2, 0, 2]
    with pytest.raises(ValueError, match="use -3 to 2"):
        resolve_layers([3], 3, "student_layers")


def test_schedules_by_hand():
    assert [scheduled_weight(2.0, "cosine_decay", step, 4) for step in (0, 2, 4)] == pytest.approx([2.0, 1.0, 0.0])
    assert scheduled_weight(2.0, "linear_decay", 3, 4) == 0.5
    assert scheduled_weight(2.0, "warmup", 1, 20) == 1.0
    assert scheduled_weight(2.0, "constant", 5, -1) == 2.0
    for factor in ALIGNMENT_SCHEDULES.values():
        assert all(0 <= factor(step / 10) <= 1 for step in range(11))


def test_maps_of_a_pair_and_their_picture(rows, fitted_teacher, tmp_path):
    tokenizer = tokenizer_of("bytes")
    students = {name: RewardScorer(build_student(seed=seed), tokenizer) for name, seed in (("a", 0), ("b", 1))}
    row = min(rows, key=lambda row: len(str(row)))  # drawing takes most of the time, and grows with the text
    maps = pair_maps(row, fitted_teacher, students)
    count = len(maps.units)
    assert count == len(maps.segments) and set(maps.segments) == {0, 1, 2}
    assert maps.units[0] == row["prompt"][0]["content"].split()[0].strip(".,!?:")
    for values in maps.maps.values():
        assert values.shape == (count, count)
        torch.testing.assert_close(values.sum(-1), torch.ones(count))
    assert maps.divergences["a"] != maps.divergences["b"] and min(maps.divergences.values()) > 0
    teacher = maps.maps["teacher"]
    uniform = (teacher * (teacher * count).log()).sum(-1).mean()
    for name, divergence in maps.divergences.items():
        assert maps.explained[name] == pytest.approx(float(1 - divergence / uniform), abs=1e-4)
    figure = plot_maps(maps)
    panels = [axis for axis in figure.axes if axis.get_title()]
    titles = [axis.get_title() for axis in panels]
    assert titles[0] == "teacher" and f"a: explained share {maps.explained['a']:.2f}" in titles[1]
    assert len({axis.images[0].norm.vmax for axis in panels}) == 1  # one scale
    figure.savefig(tmp_path / "maps.png")
    assert (tmp_path / "maps.png").stat().st_size > 10_000


def test_words_and_names_with_dollars_are_no_formulas(tmp_path):
    units = [r"$\frac$", "$5", "a$_$b"]
    map_ = torch.full((3, 3), 1 / 3)
    plot_maps(PairMaps(units, [0, 1, 2], {"teacher": map_, r"$\x$": map_}, {r"$\x$": 0.1})).savefig(tmp_path / "m.png")
    assert (tmp_path / "m.png").stat().st_size > 5_000
