"""The teacher: every family, its map against eager attention, its training."""

from __future__ import annotations

import logging
import signal
from types import SimpleNamespace

import pytest
import torch
from support.models import OWN_ATTENTION, TEACHER_FAMILIES, build_encoder
from support.processes import forked
from support.teachers import LEARNABLE, KillAt, batch_of, settings, small_teacher
from support.tokenizers import tokenizer_of

from hf_interdistill import InteractionTeacher
from hf_interdistill.interaction.attention.map_sources import dense
from hf_interdistill.interaction.attention.maps import pool_attention
from hf_interdistill.interaction.data.orders import select_order
from hf_interdistill.interaction.data.pairs import Preference, read_preference
from hf_interdistill.interaction.data.preference_tokenizer import tokenize_without_units
from hf_interdistill.interaction.teacher.stages import StageCollator, _StageTrainer
from hf_interdistill.interaction.teacher.training import chance_warning, held_out_metrics, split_by_prompt


@pytest.mark.parametrize("family", TEACHER_FAMILIES)
def test_map_of_every_family_is_its_own_attention(rows, family):
    model, tokenizer = build_encoder(family)
    teacher = InteractionTeacher.from_pretrained(model, tokenizer, max_length=200, interaction_layers=0).freeze()
    both, units = batch_of(teacher, rows[:4])
    layers = [0, 2] if family == "modernbert" else [0, 1, -1]  # ModernBERT: layers 0 and 2 see everything
    order = torch.tensor([0, 1, 0, 1])
    margins, sources = teacher.forward(both, order, layers, units)
    assert margins.shape == (4,) and margins.std() > 0
    torch.testing.assert_close(
        margins,
        teacher.score_pairs(rows[:4], is_progress_shown=False)[range(4), order],
        rtol=1e-4,
        atol=1e-5,
    )
    batch = select_order(both, order)
    eager = build_encoder(family)[0].eval()
    if family not in OWN_ATTENTION:
        eager.set_attn_implementation("eager")
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids") if key in batch}
    if getattr(eager.config, "type_vocab_size", 0) < 2:
        inputs.pop("token_type_ids", None)
    with torch.no_grad():
        attentions = eager(**inputs, output_attentions=True).attentions
    if attentions is None:  # ModernBERT
        pytest.skip("this version of transformers returns no attention of it to compare with")
    for layer, source in zip(layers, sources, strict=True):
        expected = pool_attention(attentions[layer].mean(1), batch["units"], units)
        torch.testing.assert_close(dense(source), expected, rtol=1e-3, atol=1e-5)
        sums = dense(source).sum(-1)
        assert ((sums > 0) == source.present).all() and (sums < 1 + 1e-5).all()


def test_sliding_window_layers_are_refused(rows):
    teacher = InteractionTeacher.from_pretrained(*build_encoder("modernbert"), max_length=200, interaction_layers=0)
    batch, units = batch_of(teacher.freeze(), rows[:2])
    with pytest.raises(ValueError, match=r"layer 1 attends within a sliding window of 9 .* \(\[0, 2\]\), or"):
        teacher.forward(batch, torch.zeros(2, dtype=torch.long), [1], units)


@pytest.mark.parametrize("interaction_layers", [0, 1])
def test_padding_changes_no_map(rows, interaction_layers):
    teacher = InteractionTeacher.from_pretrained(
        *build_encoder(), max_length=256, interaction_layers=interaction_layers
    ).freeze()
    batch, units = batch_of(teacher, rows[:4])
    order = torch.tensor([1, 0, 0, 1])
    margins, sources = teacher.forward(batch, order, [-1], units)
    whole = dense(sources[0])
    for pair in range(4):
        length = int(batch["attention_mask"][pair].sum(1).max())
        single = {
            key: value[pair : pair + 1, :, :length] if key != "score_positions" else value[pair : pair + 1]
            for key, value in batch.items()
        }
        alone, sources = teacher.forward(single, order[pair : pair + 1], [-1], units)
        torch.testing.assert_close(dense(sources[0])[0], whole[pair])
        torch.testing.assert_close(alone[0], margins[pair], rtol=1e-4, atol=1e-5)


def test_default_length_is_what_the_encoder_can_read():
    tokenizer = tokenizer_of("wordpiece")
    assert InteractionTeacher(build_encoder()[0], tokenizer).max_length == 512
    assert InteractionTeacher(*build_encoder("roberta")).max_length == 512  # 516 positions, counted from 4
    tokenizer.model_max_length = 128
    assert InteractionTeacher(build_encoder()[0], tokenizer).max_length == 128


def test_a_loaded_model_needs_its_tokenizer():
    with pytest.raises(ValueError, match=r"pass `tokenizer="):
        InteractionTeacher.from_pretrained(build_encoder()[0])


def test_fit_learns_scores_saves_and_loads(tmp_path):
    teacher = small_teacher()
    args = settings(tmp_path, warm_start_epochs=8, num_train_epochs=6)
    metrics = teacher.fit(LEARNABLE, str(tmp_path), args=args)
    assert metrics["accuracy"] > 0.8 and metrics["is_better_than_chance"] and metrics["pairs"] == 12
    assert not teacher.network.training and not any(p.requires_grad for p in teacher.network.parameters())
    margins = teacher.score_pairs(LEARNABLE[:5], is_progress_shown=False)
    loaded = InteractionTeacher.from_pretrained(str(tmp_path))
    assert loaded.metrics == metrics and loaded.is_fitted and loaded.max_length == teacher.max_length
    torch.testing.assert_close(loaded.score_pairs(LEARNABLE[:5], is_progress_shown=False), margins)
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in LEARNABLE[:5]]
    torch.testing.assert_close(teacher.score_pairs(swapped, is_progress_shown=False), -margins.flip(1))
    torch.testing.assert_close(teacher.score_pairs(LEARNABLE[:5], batch_size=1, is_progress_shown=False), margins)
    assert not list(tmp_path.glob("*/checkpoint-*"))


def test_a_teacher_fitted_in_bf16_judges_as_when_it_is_loaded(tmp_path):
    """Mixed precision ends with the training: what is kept in memory is what is saved."""
    teacher = small_teacher()
    teacher.fit(LEARNABLE, str(tmp_path / "t"), args=settings(tmp_path / "t", bf16=True))
    loaded = InteractionTeacher.from_pretrained(str(tmp_path / "t"))
    found, expected = (each.score_pairs(LEARNABLE[:4], is_progress_shown=False) for each in (teacher, loaded))
    assert torch.equal(found, expected) and expected.std() > 0
    assert "_original_forward" not in vars(teacher.network)


def test_the_old_name_of_score_pairs_warns(rows):
    teacher = small_teacher()
    with pytest.warns(FutureWarning, match="`InteractionTeacher.judge` is now `score_pairs`"):
        margins = teacher.judge(rows[:3], batch_size=2, is_progress_shown=False)
    assert torch.equal(margins, teacher.score_pairs(rows[:3], batch_size=2, is_progress_shown=False))


def test_fit_without_a_folder_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert small_teacher().fit(LEARNABLE, eval_dataset=LEARNABLE[:8])["pairs"] == 8
    assert not list(tmp_path.iterdir())


def test_a_teacher_that_learns_nothing_is_a_loud_warning(tmp_path, caplog):
    coin = [
        {**row, "rejected": row["chosen"] + "."}
        if i % 2
        else {**row, "rejected": row["chosen"], "chosen": row["chosen"] + "."}
        for i, row in enumerate(LEARNABLE)
    ]
    teacher = small_teacher()
    with caplog.at_level(logging.WARNING):
        metrics = teacher.fit(coin, args=settings(tmp_path, warm_start_epochs=1, num_train_epochs=1))
    assert not metrics["is_better_than_chance"] and "MAY BE NO BETTER THAN CHANCE" in caplog.text


def test_a_fit_killed_in_both_stages_resumes_to_the_same_weights(tmp_path):
    small_teacher().save_pretrained(str(tmp_path / "start"))
    for stage, is_resumed in (("single", False), ("pair", True)):

        def fit(stage=stage, is_resumed=is_resumed):
            teacher = InteractionTeacher.from_pretrained(str(tmp_path / "start"))
            options = {"callbacks": [KillAt(stage, 5)], "resume_from_checkpoint": is_resumed}
            teacher.fit(LEARNABLE, args=settings(tmp_path / "a"), **options)

        status, printed = forked(fit)
        assert status == -signal.SIGKILL, printed
        assert list((tmp_path / "a" / stage).glob("checkpoint-*"))
    resumed, unbroken = (InteractionTeacher.from_pretrained(str(tmp_path / "start")) for _ in range(2))
    metrics = resumed.fit(LEARNABLE, args=settings(tmp_path / "a"), resume_from_checkpoint=True)
    assert metrics == unbroken.fit(LEARNABLE, args=settings(tmp_path / "b"))
    for one, other in zip(resumed.network.parameters(), unbroken.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_loss_is_that_of_bradley_and_terry():
    teacher = small_teacher()
    teacher.network.eval()
    trainer = SimpleNamespace(is_pairwise=True, args=SimpleNamespace(label_smoothing_factor=0.0))
    pair = tokenize_without_units(teacher.tokenizer, read_preference(LEARNABLE[0]))
    for teacher.interaction_layers in (0, 1):
        margins = teacher.score_pairs(LEARNABLE[:1], is_progress_shown=False)[0]
        batch = StageCollator(teacher.layout)([pair])
        loss = _StageTrainer.compute_loss(trainer, teacher.network, batch)
        expected = -margins.sigmoid().log().mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_held_out_part_shares_no_prompt():
    rows = [Preference(f"p{i % 7}", "a", "b") for i in range(70)]
    training, held_out = split_by_prompt(rows, 0.2, seed=0)
    assert sorted(training + held_out) == list(range(70)) and 10 <= len(held_out) <= 20
    assert not {rows[i].prompt for i in training} & {rows[i].prompt for i in held_out}
    assert split_by_prompt(rows, 0.2, seed=0) == (training, held_out) != split_by_prompt(rows, 0.2, seed=1)
    with pytest.raises(ValueError, match="cannot be split"):
        split_by_prompt([Preference("same", "a", "b")] * 9, 0.2, seed=0)


def test_metrics_by_hand():
    metrics = held_out_metrics(torch.tensor([[1.0, 3.0], [-1.0, 2.0], [-2.0, -1.0], [0.0, 0.0]]))
    assert metrics["accuracy"] == 0.625  # right, right, wrong, tie
    assert metrics["accuracy_chosen_first"] == 0.375 and metrics["accuracy_rejected_first"] == 0.625
    assert metrics["order_agreement"] == 0.75 and not metrics["is_better_than_chance"]


@pytest.mark.parametrize(
    ("right", "wrong", "is_better", "words"),
    [
        (
            6,
            1,
            False,
            "MAY BE NO BETTER THAN CHANCE: held-out accuracy 0.857 on 7 pairs, 95 % interval 0.421 to 0.996",
        ),
        (5, 0, False, "MAY BE NO BETTER"),  # p = 0.0625
        (6, 0, True, None),  # p = 0.03125
        (60, 40, False, "MAY BE NO BETTER"),  # p = 0.0569
        (61, 39, True, None),
        (1, 9, False, "IS NO BETTER THAN CHANCE"),
    ],
)
def test_better_than_chance_is_an_exact_test(right, wrong, is_better, words):
    metrics = held_out_metrics(torch.tensor([[1.0, 1.0]] * right + [[-1.0, -1.0]] * wrong))
    assert metrics["is_better_than_chance"] is is_better
    warning = chance_warning("t", metrics)
    assert warning is None if is_better else words in warning


def test_config_is_checked(tmp_path):
    with pytest.raises(ValueError, match=r"`eval_fraction` must lie between 0 and 1, got 1.5"):
        settings(tmp_path, eval_fraction=1.5)
    with pytest.raises(ValueError, match="must be positive"):
        settings(tmp_path, num_train_epochs=0)


def test_rows_of_every_format_are_accepted():
    message = {"role": "user", "content": "hi"}
    row = {
        "chosen": [message, {"role": "assistant", "content": "a"}],
        "rejected": [message, {"role": "assistant", "content": "b"}],
    }
    assert read_preference(row).prompt == [message]


def test_settings_that_a_teacher_does_not_heed_are_refused(tmp_path):
    for name, value in (("eval_steps", 50), ("save_strategy", "epoch")):
        with pytest.raises(ValueError, match=f"`{name}` is {value!r}, but each stage of a teacher's training sets it"):
            settings(tmp_path, **{name: value})
    for name, value in (("neftune_noise_alpha", 5.0), ("batch_eval_metrics", True)):
        with pytest.raises(ValueError, match=f"`{name}` is {value}, but a teacher cannot be trained with it"):
            settings(tmp_path, **{name: value})


@pytest.mark.parametrize("name", ["evals_per_epoch", "early_stopping_patience", "per_device_eval_batch_size"])
def test_counts_of_a_teacher_are_positive(tmp_path, name):
    with pytest.raises(ValueError, match=f"`{name}` is 0, but must be a whole number"):
        settings(tmp_path, **{name: 0})
