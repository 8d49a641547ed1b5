"""Options of the reward loss in a comparison: recipes of their own, and rows to score that have label columns."""

from __future__ import annotations

import re

import pytest
import yaml
from datasets import Dataset
from support.comparisons import config_of, recipe_of
from support.pipeline import PAIRS

from hf_interdistill import compare
from hf_interdistill.comparison.arms import read_arms
from hf_interdistill.comparison.data import prompt_keys
from hf_interdistill.interaction.data.winners import rows_with_winners, with_winner_chosen
from hf_interdistill.interaction.teacher.config import InteractionTeacherConfig
from hf_interdistill.interaction.teacher.training import split_preferences


@pytest.mark.parametrize(
    "option",
    [
        {"tie_model": "davidson"},
        {"agreement_margin": 1.0},
        {"regularization_weight": 0.01},
        {"length_penalty_weight": 0.1},
        {"label_smoothing_factor": 0.1},
    ],
)
def test_a_loss_without_alignment_is_a_recipe_of_its_own(option, made):
    main = yaml.safe_load(made.recipe.read_text())
    plain = {**main, "alignment_weight": 0.0, **option}
    arms = read_arms(main, {"robust": plain}, [])
    (name,) = option
    assert arms[2].changed_from(arms[0])[name] == (getattr(arms[0].args, name), option[name])
    both = read_arms({**main, **option}, {}, [])  # the comparison is of the alignment alone
    changed = both[1].changed_from(both[0])
    assert "alignment_weight" in changed and option.keys().isdisjoint(changed)
    assert getattr(both[0].args, name) == option[name]


def test_robust_losses_are_compared(made, tmp_path):
    robust = recipe_of(made, "robust", alignment_weight=0.0, length_penalty_weight=5.0)
    found = compare(made.recipe, config_of(tmp_path, recipes=[f"robust={robust}"]), is_progress_shown=False)
    assert found.model("robust").difference is not None
    assert found.model("robust").mean_margin != found.model("baseline").mean_margin


OPTIONS = {
    "length_penalty_weight": 0.1,
    "label_smoothing_factor": 0.1,
    "attribute_weights": {"helpfulness": 1.0},
    "attribute_loss_weight": 0.3,
}


def test_a_recipe_without_alignment_is_compared_without_its_options(made):
    """The teacher of the recipe does not count, and need not be there."""
    main = {**yaml.safe_load(made.recipe.read_text()), "alignment_weight": 0.0, **OPTIONS}
    main.pop("teacher_model")
    arms = read_arms(main, {}, [])
    assert [arm.name for arm in arms] == ["baseline", "recipe"]
    changed = arms[1].changed_from(arms[0])
    assert changed == {name: (getattr(arms[0].args, name), value) for name, value in OPTIONS.items()}
    assert OPTIONS.keys().isdisjoint(arms[0].settings) and main.keys() - OPTIONS.keys() >= arms[0].settings.keys()
    by_words = read_arms({**main, "teacher_model": "x"}, {}, ["--length_penalty_weight", "0.4"])
    assert by_words[1].changed_from(by_words[0])["length_penalty_weight"] == (0.0, 0.4)
    aligned = {**main, "alignment_weight": 1.0, "teacher_model": "x"}
    assert [arm.name for arm in read_arms(main, {"interaction": aligned}, [])] == ["baseline", "recipe", "interaction"]
    with pytest.raises(ValueError, match="not `baseline` or `recipe`"):
        read_arms(main, {"recipe": aligned}, [])


def test_a_loss_alone_is_compared_without_a_teacher(made, tmp_path):
    recipe = recipe_of(made, "alone", alignment_weight=0.0, length_penalty_weight=5.0, teacher_model=None)
    config = config_of(tmp_path, diagnosis_pairs=4)
    found = compare(recipe, config, is_progress_shown=False)
    assert [model.name for model in found.models] == ["baseline", "recipe"] and found.teachers == ()
    assert found.model("recipe").changes == {"length_penalty_weight": ("0.0", "5.0")}
    assert found.model("recipe").mean_margin != found.model("baseline").mean_margin
    plain = compare(made.recipe, config_of(tmp_path / "aligned"), is_progress_shown=False)
    assert found.model("baseline").mean_margin == pytest.approx(plain.model("baseline").mean_margin)
    assert len(found.verdicts()) == 1 and "recipe minus baseline" in found.verdicts()[0]
    page = re.sub(r"<(style|script)>.*?</\1>", "", (tmp_path / "index.html").read_text(), flags=re.DOTALL)
    for text in (page, *found.verdicts()):
        assert not re.search(r"\b(maps?|teachers?|interaction)\b", text, re.IGNORECASE)
    cards = [path.read_text() for path in tmp_path.glob("runs/*/seed-7/README.md")]
    assert len(cards) == 2
    for text in cards:
        assert "without a teacher" in text and not re.search(r"\bmaps?\b", text, re.IGNORECASE)
    assert not (tmp_path / "teachers").exists()


def test_a_teacher_that_nothing_reads_is_refused(made, tmp_path):
    recipe = recipe_of(made, "untaught", alignment_weight=0.0, length_penalty_weight=5.0)
    with pytest.raises(ValueError, match="but changes nothing: every recipe has `alignment_weight` 0"):
        compare(recipe, config_of(tmp_path, teacher_config=str(made.recipe)), is_progress_shown=False)


def test_rows_are_scored_by_their_winner(made, tmp_path):
    folder = made.path("shares")
    folder.mkdir()
    shares = [1.0, 0.2, 0.5, 0.9, 0.0, 0.5]
    rows = [{**row, "preference_probability": share} for row, share in zip(PAIRS[64:70], shares, strict=True)]
    made.write_rows("shares/train.jsonl", [{**row, "preference_probability": 0.8} for row in PAIRS[:16]])
    made.write_rows("shares/test.jsonl", rows)
    found = compare(
        recipe_of(made, "shares", dataset_name=str(folder)), config_of(tmp_path / "shares"), is_progress_shown=False
    )
    won = made.path("won")
    won.mkdir()
    made.write_rows("won/train.jsonl", [{**row, "preference_probability": 0.8} for row in PAIRS[:16]])
    plain = [PAIRS[64], exchanged(PAIRS[65]), PAIRS[67], exchanged(PAIRS[68])]
    plain = [{**row, "preference_probability": 0.8} for row in plain]
    made.write_rows("won/test.jsonl", plain)
    expected = compare(
        recipe_of(made, "won", dataset_name=str(won)), config_of(tmp_path / "won"), is_progress_shown=False
    )
    for name in ("baseline", "interaction"):
        assert found.model(name).mean_margin == pytest.approx(expected.model(name).mean_margin)
    assert found.pairs == 4 and "without 2 pairs that have no winner" in (tmp_path / "shares/index.html").read_text()


def exchanged(row: dict) -> dict:
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def test_winners_by_hand():
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert with_winner_chosen({**row, "margin": None}) == {**row, "margin": None}  # no shares, so not its business
    assert with_winner_chosen({**row, "preference_probability": 0.4, "tie_probability": 0.3}) == row
    assert with_winner_chosen({**row, "preference_probability": 0.3, "tie_probability": 0.3, "margin": 1}) == (
        exchanged(row)
    )
    assert with_winner_chosen({**row, "tie_probability": True}) is None
    assert with_winner_chosen({**row, "tie_probability": 0.4}) == row
    ranked = {"prompt": "p", "completions": ["c", "a", "b"], "ranks": [2, 1, 3]}
    assert with_winner_chosen(ranked) == row
    assert prompt_keys([ranked, row], "rows") == ["p", "p"]
    with pytest.raises(ValueError, match="`rows`: Row 1: `tie_probability` is 3"):
        rows_with_winners([row, {**row, "tie_probability": 3}], "rows")
    with pytest.raises(ValueError, match="`rows`: none of the 1 rows has a winner"):
        rows_with_winners([{**row, "tie_probability": 1}], "rows")


def test_a_teacher_learns_from_winners():
    shares = [1.0, 0.2, 0.5, 0.9, 0.0, 0.5]
    rows = [{**row, "preference_probability": share} for row, share in zip(PAIRS[:6], shares, strict=True)]
    args = InteractionTeacherConfig(eval_fraction=0.3)
    plain = [PAIRS[0], exchanged(PAIRS[1]), PAIRS[3], exchanged(PAIRS[4])]
    assert split_preferences(rows, rows, args) == split_preferences(plain, plain, args)
    assert split_preferences(Dataset.from_list(rows), rows, args) == split_preferences(plain, plain, args)
