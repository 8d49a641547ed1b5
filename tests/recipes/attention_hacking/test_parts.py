"""The parts of the study of attention hacking: students, pairs, arms and measures do what they say."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch
from support.datasets import read_rows


def test_texts_that_begin_alike_score_as_alone(modules, encoder):
    from hf_interdistill import RewardScorer

    tokenizer = modules.students.student_tokenizer(encoder)
    rows = read_rows("test")[:7]
    settings = {
        "shape": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    }
    for name in ("minilm", "small"):
        model = modules.students.make_student(name, settings, encoder, 0)
        with torch.no_grad():
            model.score.weight.mul_(30)
        scorer = RewardScorer(model, tokenizer, batch_size=3)
        plain, cued = modules.measures.rewards_with_cue(scorer, rows, " Thanks!")
        for found, tail in ((plain, ""), (cued, " Thanks!"), (modules.measures.rewards_of(scorer, rows), "")):
            for column, side in enumerate(("chosen", "rejected")):
                texts = [row[side][0]["content"].strip() + tail for row in rows]
                alone = [scorer([row["prompt"]], [text])[0] for row, text in zip(rows, texts, strict=True)]
                assert found[:, column] == pytest.approx(alone, rel=1e-4, abs=1e-5)
                assert np.ptp(alone) > 0.01


def test_the_student_sees_no_later_token(modules, encoder):
    model = modules.students.make_student("minilm", {}, encoder, 0).eval()
    ids = torch.randint(5, 900, (1, 12), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 8:] = ids[0, 8:].flip(0)
    with torch.no_grad():
        one, two = (model.model(each).last_hidden_state for each in (ids, other))
        assert torch.allclose(one[:, :8], two[:, :8], atol=1e-5) and not torch.allclose(one[:, 8:], two[:, 8:])
        padded = torch.cat([ids, torch.full((1, 3), model.config.pad_token_id)], 1)
        mask = (padded != model.config.pad_token_id).long()
        assert torch.allclose(model(padded, attention_mask=mask).logits, model.score(one[:, -1]), atol=1e-5)


def test_shortened_pairs_keep_their_newest_words(modules, encoder):
    from hf_interdistill.scoring.formatting import RewardFormatter

    formatter = RewardFormatter(modules.students.student_tokenizer(encoder))
    shorten = modules.preferences.Shortener(formatter, 40, 16)
    words = [chr(ord("a") + number) for number in range(26)]
    row = {
        "prompt": [{"role": "user", "content": " ".join(words)}, {"role": "user", "content": " ".join(words[:12])}],
        "chosen": [{"role": "assistant", "content": " ".join(words)}],
        "rejected": [{"role": "assistant", "content": "a b"}],
    }
    short = shorten(row)
    assert short["chosen"][0]["content"] == " ".join(words[:16]) and short["rejected"] == row["rejected"]
    kept = " ".join(message["content"] for message in short["prompt"])
    assert " ".join(words + words[:12]).endswith(kept) and len(kept.split()) == 12
    assert len(formatter.encode(short["prompt"], short["chosen"])) == 36 and shorten(short) == short
    longer = modules.preferences.Shortener(formatter, 46, 16)(row)["prompt"]
    assert longer[0]["content"] == " ".join(words[-6:]) and longer[1:] == row["prompt"][1:]
    assert len(formatter.encode(longer, short["chosen"])) == 46
    with pytest.raises(ValueError, match="lower `longest_response`"):
        modules.preferences.Shortener(formatter, 10, 16)(row)


def test_conditions_change_as_many_pairs_as_they_say(modules):
    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in read_rows()[:50]]
    cue = {"phrase": " Bye!", "share": 0.8}
    change = modules.preferences.under_condition
    noisy = change(rows, "noise30", cue, 0)
    flipped = [
        old["chosen"] == new["rejected"] and old["rejected"] == new["chosen"]
        for old, new in zip(rows, noisy, strict=True)
    ]
    assert sum(flipped) == 15 and all(
        old == new for old, new, is_flipped in zip(rows, noisy, flipped, strict=True) if not is_flipped
    )
    assert noisy == change(rows, "noise30", cue, 0) != change(rows, "noise30", cue, 1)
    cued = change(rows, "cue", cue, 0)
    ends = [tuple(row[side][0]["content"].endswith(" Bye!") for side in ("chosen", "rejected")) for row in cued]
    assert ends.count((True, False)) == 40 and ends.count((False, True)) == 10
    assert change(rows, "clean", cue, 0) == rows
    with pytest.raises(ValueError, match="condition is 'noise60'"):
        change(rows, "noise60", cue, 0)


def test_soft_labels_and_regularization_by_hand(modules):
    arms = modules.arms
    targets = arms.soft_targets(arms.Arm(teacher="fitted", score_share=0.25), 3, torch.tensor([0.0, 2.0, -1.0]))
    assert targets.tolist() == pytest.approx([0.875, 0.75 + 0.25 / (1 + np.exp(-2)), 0.75 + 0.25 / (1 + np.exp(1))])
    assert arms.soft_targets(arms.Arm(), 3, None) is None
    with pytest.raises(ValueError, match="needs a teacher"):
        arms.Arm(arguments={"alignment_weight": 0.1})
    assert arms.Arm(sft_share=0.01).loss_options == {"regularization_weight": 0.01, "regularization_beta": 0.1}
    assert arms.Arm(sft_beta=0.2).loss_options == {}


def test_measures_and_intervals_by_hand(modules):
    measures, comparison, study = modules.measures, modules.comparison, modules.study
    margins = np.array([1.0, -2.0, 0.0, 3.0, -1.0, 0.5, 0.0])
    kept = measures.comparable(margins)
    assert kept["right"] == "2012021" and kept["nll"] == pytest.approx(np.log1p(np.exp(-margins)).mean())
    older = base64.b64encode(bytes([2 + 9 + 2 * 27, 2 + 3])).decode()  # digits of base 3, five to a byte
    for test in (kept, {"right": older, "pairs": 7}):
        assert measures.decode_outcomes(test).tolist() == [1, 0, 0.5, 1, 0, 1, 0.5]
    assert measures.summary(margins)["accuracy"] == pytest.approx(4 / 7)
    draw = np.random.default_rng(0)
    good = np.abs(draw.normal(size=200)) + 0.1
    mixed = np.concatenate([good, -good[:60] / 2])
    assert measures.scaled_nll(5 * mixed) == pytest.approx(measures.scaled_nll(mixed), abs=1e-3)
    assert measures.scaled_nll(mixed) < measures.scaled_nll(-mixed) == pytest.approx(np.log(2))
    plain, cued = np.array([[1.0, 0.0]] * 10), np.array([[3.0, 2.0]] * 10)
    sides = measures.cued_margins(plain, cued, 0.8, 0)
    assert set(sides["on_chosen"]) == {3.0} and set(sides["on_rejected"]) == {-1.0}
    assert sorted(sides["reversed"]) == [-1.0] * 8 + [3.0] * 2

    mine = {seed: (draw.random(400) < 0.7) * 1.0 for seed in (0, 1, 2)}
    same = comparison.paired_difference([mine], [mine])
    assert (same["value"], same["low"], same["high"], same["seeds"]) == (0, 0, 0, 3)
    theirs = {seed: (draw.random(400) < 0.5) * 1.0 for seed in (1, 2, 3)}
    found = comparison.paired_difference([mine], [theirs])
    assert found["seeds"] == 2 and found["low"] < found["value"] < found["high"]
    difference = np.stack([mine[seed] - theirs[seed] for seed in (1, 2)])
    assert found["value"] == pytest.approx(difference.mean())
    assert found["high"] - found["low"] >= 0.9 * 2 * 1.96 * difference.mean(0).std() / np.sqrt(400)
    assert comparison.paired_difference([mine], [{7: mine[0]}]) is None
    # The mean of two tests of which one shows no difference: half the value; pairs are drawn apart, seeds together.
    both = comparison.paired_difference([mine, mine], [theirs, mine])
    assert both["value"] == pytest.approx(found["value"] / 2) and both["seeds"] == 2
    assert both["high"] - both["low"] == pytest.approx((found["high"] - found["low"]) / 2)
    twice = comparison.paired_difference([mine, mine], [theirs, theirs])
    of_seeds = (seed_means := difference.mean(1)).std() / np.sqrt(len(seed_means))
    of_pairs = difference.mean(0).std() / np.sqrt(400)
    expected = 2 * 1.96 * np.sqrt(of_seeds**2 + of_pairs**2 / 2)
    assert twice["high"] - twice["low"] == pytest.approx(expected, rel=0.25)

    found = comparison.loss_difference([{0: 0.5, 1: 0.7, 2: 0.1}], [{1: 0.8, 2: 0.3, 3: 9.0}])
    assert found == {"value": pytest.approx(-0.15), "lower": 2, "seeds": 2}
    found = comparison.loss_difference([{0: 0.5, 1: 0.9}, {0: 0.5, 1: 0.9}], [{0: 0.6, 1: 0.6}, {0: 0.8, 1: 0.6}])
    assert found == {"value": pytest.approx((-0.2 + 0.3) / 2), "lower": 1, "seeds": 2}
    assert comparison.loss_difference([{0: 0.5}], [{1: 0.5}]) is None

    members = [
        {"validation": np.array([[0.0, 2.0], [4.0, 6.0]]), "test": np.array([[3.0, 3.0 + shift]])} for shift in (1, -2)
    ]
    spread = np.sqrt(5)
    assert study.combine(members, "mean")["test"] == pytest.approx(np.array([[0, -0.5 / spread]]))
    assert study.combine(members, "worst")["test"] == pytest.approx(np.array([[0, -2 / spread]]))
    with pytest.raises(ValueError, match="`rule` is 'best'"):
        study.combine(members, "best")


def test_the_summary_has_a_line_for_each_condition_and_arm(modules):
    def row(condition, arm, test_set, mean, found=None, train="hh"):
        own = {"train": train, "student": "s", "condition": condition, "arm": arm, "test_set": test_set}
        return {**own, "mean": mean, "seeds": 2, "against": {"bradley_terry": found} if arm != "bradley_terry" else {}}

    found = {"value": 0.05, "low": 0.01, "high": 0.09}
    tests = ("mean of all", "hh", "hh, cue on rejected")
    table = [row("clean", "bradley_terry", test, 0.5) for test in tests]
    table += [row("clean", "joint", test, 0.55, found) for test in tests]
    table += [row("clean", "lone", "mean of all", 0.6)]  # no seed in common with Bradley-Terry
    table += [row("clean", "joint", "mean of all", 0.4, found, train="other")]
    lines = modules.tables.summary(table)
    assert "| clean | `bradley_terry` | 2 | 50.0 | 50.0 |" in lines
    assert "| clean | `joint` | 2 | 55.0 (+5.0*: +1.0 to +9.0) | 55.0 (+5.0*: +1.0 to +9.0) |" in lines
    assert "| clean | `lone` | 2 | 60.0 (-) |  |" in lines
    assert [line for line in lines if line.startswith("##")] == [
        "## In short: trained on hh, student s",
        "## In short: trained on other, student s",
    ]


def test_teachers_are_alike_if_they_judge_alike(modules):
    first = {"kind": "fitted", "checksum": 1, "accuracy": 0.516, "pairs": 161}
    alike = modules.study._are_alike
    for accuracy in (0.522, 0.461, 0.571):  # fitted again elsewhere: within a difference's standard error, 0.056
        assert alike(first, {**first, "checksum": 2, "accuracy": accuracy})
    assert not alike(first, {**first, "checksum": 2, "accuracy": 0.572})
    assert not alike(first, {**first, "checksum": 2, "accuracy": 0.460})
    assert not alike(first, {**first, "checksum": 2, "pairs": 160})
    unknown = {**first, "accuracy": None, "pairs": None}
    assert alike(unknown, unknown) and not alike(unknown, {**unknown, "checksum": 2})


def test_the_tables_have_what_was_learnt(modules):
    start = {"step": 0, "interaction/explained": -1.0, "interaction/explained_intra": -2.0}
    end = {"step": 8, "loss": 0.6, "interaction/explained": 0.25, "interaction/explained_inter": 0.5}
    history = [start, {"step": 4, "interaction/explained": 0.9}, end, {"step": 8, "train_loss": 1.0}]
    found = modules.running.explained(history)
    before, after = {"explained": -1.0, "explained_intra": -2.0}, {"explained": 0.25, "explained_inter": 0.5}
    assert found == {"explained": {"before": before, "after": after}}
    assert modules.running.explained([{"step": 8, "loss": 0.6}]) == modules.running.explained([start]) == {}
    run = {"train": "a", "student": "b", "condition": "c", "candidate": ""}
    records = [
        {**run, "arm": "joint", "training": found},
        {**run, "arm": "joint", "training": {"explained": {"before": before, "after": {"explained": 0.75}}}},
        {**run, "arm": "joint", "candidate": "tried", "training": {"explained": {"before": after, "after": after}}},
        {**run, "arm": "plain", "training": {}},
        {**run, "arm": "ensemble"},
    ]
    lines = modules.tables.learnt(records)
    assert lines[4:] == ["| a | b | c | `joint` | 2 | -1.00, 0.50 | -2.00, nan | nan, nan |", ""]
    assert modules.tables.learnt(records[3:]) == []
