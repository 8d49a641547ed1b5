"""`AlignmentObjective` without a trainer, against plain torch: a tiny student and teacher, values and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.models import build_student
from support.training_runs import COMMON, losses
from trl.trainer.reward_trainer import DataCollatorForPreference

from hf_interdistill import InteractionDistillationConfig, InteractionDistillationTrainer
from hf_interdistill.interaction.data.collator import ALIGNMENT_KEYS, AlignmentCollator
from hf_interdistill.interaction.data.orders import choose_order
from hf_interdistill.interaction.data.preference_tokenizer import PreferenceTokenizer
from hf_interdistill.interaction.objective import AlignmentObjective, AlignmentOutput, AlignmentSettings
from hf_interdistill.interaction.prompt_sharing.packing import PackedPairs

LAYERS = {"student_layers": [0, -1], "teacher_layers": [1, -1]}


@pytest.fixture
def batch(rows, tokenizer, fitted_teacher):
    """Three pairs as the trainer's collator makes them."""
    fitted_teacher.interaction_layers = 0  # one row per pair, whose order depends on the visit
    encoder = PreferenceTokenizer(tokenizer, fitted_teacher.tokenizer)
    columns = [encoder.encode(dict(row), index)[0] for index, row in enumerate(rows[:3])]
    collator = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)
    return AlignmentCollator(collator, fitted_teacher.layout)(columns)


def run(objective, student, batch, **options) -> AlignmentOutput:
    with objective.build_recorder(student) as recorder:
        student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return objective({key: batch[key] for key in ALIGNMENT_KEYS if key in batch}, recorder.records, **options)


def heads_of(states, projection, head_dim):
    return projection(states).unflatten(-1, (-1, head_dim)).transpose(1, 2)


def rotate(states, cos, sin):
    half = states.shape[-1] // 2
    return states * cos[:, None] + torch.cat([-states[..., half:], states[..., :half]], -1) * sin[:, None]


def student_attention(student, batch, layer, pair):
    """Mean over heads of the attention without causal mask, for the content tokens of a pair in unit order."""
    length = batch["input_ids"].shape[1]
    output = student.model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
    )
    states = student.model.layers[layer].input_layernorm(output.hidden_states[layer])
    tables = student.model.rotary_emb(states, torch.arange(length)[None])
    attention = student.model.layers[layer].self_attn
    query = rotate(heads_of(states, attention.q_proj, attention.head_dim), *tables)
    key = rotate(heads_of(states, attention.k_proj, attention.head_dim), *tables).repeat_interleave(2, 1)
    units = batch["student_units"][pair]
    index = batch["student_index"][pair][units >= 0]
    row = torch.where(index < length, pair, pair + len(batch["segments"]))
    query, key = (states[row, :, index % length].transpose(0, 1) for states in (query, key))
    weights = (query @ key.transpose(1, 2) * attention.head_dim**-0.5).softmax(-1).mean(0)
    return weights, units[units >= 0]


def pooled(weights, units, count):
    """Mean over the query tokens and sum over the key tokens of each unit."""
    is_of_unit = (units[:, None] == torch.arange(count)).to(weights.dtype)
    sizes = is_of_unit.sum(0).clamp(min=1)
    return (is_of_unit.T @ weights @ is_of_unit) / sizes[:, None]


def oracle(student, teacher, batch, visit):
    """Joint KL, a mean over layer pairs and pairs, and the margins of the teacher, from `output_attentions`."""
    segments = batch["segments"]
    order = choose_order(batch["pair_key"], 0, visit)
    pairs, count = segments.shape
    inputs = {
        name.removeprefix("teacher_"): batch[name][torch.arange(pairs), order]
        for name in ("teacher_input_ids", "teacher_attention_mask", "teacher_token_type_ids")
    }
    teacher_units = batch["teacher_units"][torch.arange(pairs), order]
    teacher.network.encoder.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = teacher.network.encoder(**inputs, output_attentions=True).attentions
    teacher.network.encoder.set_attn_implementation("sdpa")
    values = []
    for student_layer, teacher_layer in zip((0, 2), (1, 2), strict=True):
        for pair in range(pairs):
            target = pooled(attentions[teacher_layer][pair].mean(0), teacher_units[pair], count)
            own = pooled(*student_attention(student, batch, student_layer, pair), count)
            units = [unit for unit in range(count) if segments[pair, unit] >= 0 and target[unit].any()]
            target, own = (each[units][:, units] for each in (target, own))
            target, own = (each / each.sum(-1, keepdim=True) for each in (target, own))
            values.append((target * (target / own).log()).sum(-1).mean())
    return torch.stack(values).unflatten(0, (2, pairs)).mean(0)


def objective_of(teacher, **settings):
    return AlignmentObjective(teacher.freeze(), AlignmentSettings(**{**LAYERS, **settings}))


def gradients_of(student, loss):
    student.zero_grad()
    loss.backward()
    return {name: each.grad.clone() for name, each in student.named_parameters() if each.grad is not None}


def test_loss_and_gradients_equal_plain_torch(batch, fitted_teacher):
    student = build_student().eval()
    for visit in (1, 2):
        output = run(objective_of(fitted_teacher), student, batch, visit=visit)
        found = gradients_of(student, output.loss)
        expected = oracle(student, fitted_teacher, batch, visit).mean()
        torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(output.metrics["loss"], expected.detach(), rtol=1e-4, atol=1e-6)
        for name, value in gradients_of(student, expected).items():
            if name in found:
                torch.testing.assert_close(found[name], value, rtol=2e-3, atol=1e-5, msg=name)
            else:
                assert not value.any(), name
        assert "model.layers.2.self_attn.q_proj.weight" in found


def test_the_reading_order_depends_on_seed_and_visit(batch, fitted_teacher):
    student = build_student().eval()
    found = {
        float(run(objective_of(fitted_teacher, seed=seed), student, batch, visit=visit).loss.detach())
        for seed in (0, 1, 2)
        for visit in (0, 1, 2)
    }
    assert len(found) > 1


def test_packed_rows_give_the_same_loss(batch, fitted_teacher):
    student = build_student().eval()
    objective = objective_of(fitted_teacher)
    expected = run(objective, student, batch)
    packed = PackedPairs.from_rows(batch["input_ids"], batch["attention_mask"])
    with objective.build_recorder(student) as recorder:
        student(
            input_ids=packed.input_ids,
            attention_mask=packed.visible[:, None],
            position_ids=packed.position_ids,
            use_cache=False,
        )
    found = objective(batch, recorder.records, token_index=packed.token_index)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-4, atol=1e-6)


def test_pairs_beyond_num_pairs_do_not_count(batch, fitted_teacher):
    student = build_student().eval()
    objective = objective_of(fitted_teacher)
    by_pair = oracle(student, fitted_teacher, batch, 0)
    for num_pairs in (0, 1, 2, 3):
        output = run(objective, student, batch, num_pairs=num_pairs)
        expected = by_pair[:num_pairs].mean() if num_pairs else torch.zeros(())
        torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-6)
        assert output.num_pairs == num_pairs


def test_metrics(batch, fitted_teacher):
    student = build_student().eval()
    objective = objective_of(fitted_teacher)
    output = run(objective, student, batch, num_pairs=2)
    inputs = {key.removeprefix("teacher_"): value for key, value in batch.items() if key.startswith("teacher_")}
    order = choose_order(batch["pair_key"], 0, 0)
    margins, _ = fitted_teacher.forward(inputs, order, [-1], batch["segments"].shape[1])
    assert float(output.metrics["teacher_accuracy"]) == float((margins[:2] > 0).float().mean())
    for scope in ("intra", "inter"):
        other = run(objective_of(fitted_teacher, alignment_scope=scope), student, batch, num_pairs=2)
        torch.testing.assert_close(output.metrics[scope], other.loss.detach())
        assert not torch.equal(other.loss, output.loss)
    fitted_teacher.metrics = None
    assert "teacher_accuracy" not in run(objective, student, batch).metrics


@pytest.mark.parametrize("control", ["uniform", "shuffled"])
def test_controls_replace_the_teachers_map(batch, fitted_teacher, control):
    student = build_student().eval()
    plain = run(objective_of(fitted_teacher), student, batch)
    changed = run(objective_of(fitted_teacher, alignment_control=control), student, batch)
    assert not torch.allclose(plain.loss, changed.loss)
    with pytest.raises(ValueError, match="`alignment_control` is 'none at all', but must be one of none, uniform"):
        AlignmentSettings(alignment_control="none at all")


def test_settings_are_those_of_the_config(tmp_path):
    args = InteractionDistillationConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, alignment_loss="mse", seed=7, **LAYERS
    )
    assert AlignmentSettings.from_config(args) == AlignmentSettings(alignment_loss="mse", seed=7, **LAYERS)


def test_a_subclass_of_the_trainer_can_use_another_objective(dataset, tmp_path, tokenizer, fitted_teacher):
    class Doubled(AlignmentObjective):
        def layer_loss(self, *arguments):
            result = super().layer_loss(*arguments)
            return replace(result, loss=2 * result.loss)

    class DoubledTrainer(InteractionDistillationTrainer):
        def build_objective(self, cached_teacher):
            return Doubled(self.teacher, AlignmentSettings.from_config(self.args), cached_teacher=cached_teacher)

    logged = []
    for trainer_class in (InteractionDistillationTrainer, DoubledTrainer):
        args = InteractionDistillationConfig(output_dir=str(tmp_path / "rm"), **{**COMMON, "max_steps": 1})
        trainer = trainer_class(
            build_student(), args, train_dataset=dataset, processing_class=tokenizer, teacher=fitted_teacher
        )
        trainer.train()
        logged.append(losses(trainer, "interaction/loss")[0])
    assert logged[1] == pytest.approx(2 * logged[0], rel=1e-6)
