"""`RewardEnsemble`: the numbers of its members put together as published, and what it refuses."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from support.models import build_student
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardEnsemble, RewardScorer

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWERS = [f"It is {'very ' * (n % 5)}likely number {n}." for n in range(9)]
PROMPTS = [QUESTION] * len(ANSWERS)


def save(folder, seed: int, tokenizer: str = "bytes"):
    build_student(seed=seed, pad_token_id=tokenizer_of(tokenizer).pad_token_id).save_pretrained(folder)
    tokenizer_of(tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("members")
    return [save(root / f"rm{seed}", seed) for seed in range(3)]


@pytest.fixture(scope="module")
def alone(folders) -> torch.Tensor:
    """`(members, answers)`, each member read by itself."""
    return torch.tensor([RewardScorer.from_pretrained(each)(PROMPTS, ANSWERS) for each in folders])


def expected(rewards: torch.Tensor, aggregation: str, weight: float) -> torch.Tensor:
    count = len(rewards)
    mean = sum(rewards) / count
    if aggregation == "worst":
        return torch.stack([column.min() for column in rewards.T])
    variance = sum((row - mean) ** 2 for row in rewards) / count
    return mean - (weight * variance if aggregation == "uncertainty" else 0)


@pytest.mark.parametrize(
    ("aggregation", "weight"), [("mean", None), ("worst", None), ("uncertainty", 0.7), ("uncertainty", None)]
)
def test_rewards_are_those_of_the_members_put_together(folders, alone, aggregation, weight):
    ensemble = RewardEnsemble.from_pretrained(folders, aggregation=aggregation, uncertainty_weight=weight)
    wanted = expected(alone, aggregation, 0.5 if weight is None else weight)
    assert ensemble(PROMPTS, ANSWERS) == pytest.approx(wanted.tolist(), abs=1e-5)
    assert ensemble.last_forward_passes == 3 and len(ensemble.last_token_counts) == len(ANSWERS)
    single = RewardScorer.from_pretrained(folders[0])
    single(PROMPTS, ANSWERS)
    assert ensemble.last_token_counts == [3 * count for count in single.last_token_counts]
    assert ensemble([], []) == []


def test_the_rules_differ_and_a_larger_weight_is_more_cautious(folders):
    found = {}
    for name, options in {
        "mean": {},
        "worst": {"aggregation": "worst"},
        "low": {"aggregation": "uncertainty", "uncertainty_weight": 0.1},
        "high": {"aggregation": "uncertainty", "uncertainty_weight": 2.0},
    }.items():
        found[name] = torch.tensor(RewardEnsemble.from_pretrained(folders, **options)(PROMPTS, ANSWERS))
    assert (found["worst"] < found["mean"]).all() and (found["low"] < found["mean"]).all()
    assert (found["high"] < found["low"]).all()


def test_calibrated_rewards_have_each_members_own_unit(folders, alone):
    ensemble = RewardEnsemble.from_pretrained(folders, aggregation="worst").calibrate(PROMPTS, ANSWERS)
    standardized = (alone - alone.mean(1, keepdim=True)) / alone.std(1, correction=0, keepdim=True)
    assert ensemble.rule.centers == pytest.approx(alone.mean(1).tolist(), abs=1e-5)
    assert ensemble(PROMPTS, ANSWERS) == pytest.approx(standardized.min(0).values.tolist(), abs=1e-4)
    rewards = ensemble.member_rewards(ensemble.encode_rows(PROMPTS, ANSWERS))
    assert torch.allclose(rewards, standardized, atol=1e-4)
    ensemble.calibrate(PROMPTS[:4], ANSWERS[:4])  # again, from the raw rewards
    assert ensemble.rule.centers == pytest.approx(alone[:, :4].mean(1).tolist(), abs=1e-5)


def test_rewards_as_they_are_are_warned_of_once(folders, caplog):
    ensemble = RewardEnsemble.from_pretrained(folders)
    with caplog.at_level(logging.WARNING):
        ensemble(PROMPTS[:2], ANSWERS[:2])
        ensemble(PROMPTS[:2], ANSWERS[:2])
    assert caplog.text.count("`calibrate(prompts, completions)`") == 1
    caplog.clear()
    ensemble.calibrate(PROMPTS, ANSWERS)(PROMPTS[:2], ANSWERS[:2])
    assert "calibrate" not in caplog.text


def test_a_saved_ensemble_is_the_same_and_moves_with_its_members(tmp_path):
    folders = [save(tmp_path / "all" / f"rm{seed}", seed) for seed in range(2)]
    ensemble = RewardEnsemble.from_pretrained(folders, aggregation="uncertainty", uncertainty_weight=0.3)
    wanted = ensemble.calibrate(PROMPTS, ANSWERS)(PROMPTS, ANSWERS)
    ensemble.save_pretrained(tmp_path / "all" / "ensemble")
    written = json.loads((tmp_path / "all" / "ensemble" / "reward_ensemble.json").read_text())
    assert written["members"] == ["../rm0", "../rm1"] and written["uncertainty_weight"] == 0.3
    (tmp_path / "all").rename(tmp_path / "moved")
    loaded = RewardEnsemble.from_pretrained(tmp_path / "moved" / "ensemble")
    assert loaded(PROMPTS, ANSWERS) == pytest.approx(wanted, abs=1e-5) and loaded.rule == ensemble.rule
    other = RewardEnsemble.from_pretrained(tmp_path / "moved" / "ensemble", aggregation="worst")
    assert other.rule.aggregation == "worst" and other.rule.centers == ensemble.rule.centers
    named = RewardEnsemble.from_pretrained(tmp_path / "moved" / "ensemble", aggregation="uncertainty")
    assert named.rule == ensemble.rule and named(PROMPTS, ANSWERS) == pytest.approx(wanted, abs=1e-5)
    heavier = RewardEnsemble.from_pretrained(
        tmp_path / "moved" / "ensemble", aggregation="uncertainty", uncertainty_weight=2
    )
    assert heavier.rule.uncertainty_weight == 2.0 and heavier.rule.centers == ensemble.rule.centers
    other.save_pretrained(tmp_path / "moved" / "worst")
    again = RewardEnsemble.from_pretrained(tmp_path / "moved" / "worst", aggregation="uncertainty")
    assert again.rule.uncertainty_weight == 0.5  # the folder has none


def test_members_with_other_tokenizers_read_their_own_text(tmp_path, folders, caplog):
    other = save(tmp_path / "other", 7, tokenizer="wordpiece")
    tokenizer = tokenizer_of("wordpiece")
    tokenizer.chat_template, tokenizer.eos_token = tokenizer_of("bytes").chat_template, "[SEP]"
    tokenizer.save_pretrained(other)
    with caplog.at_level(logging.WARNING):
        ensemble = RewardEnsemble.from_pretrained([folders[0], other], aggregation="worst")
    assert "The members read different tokens" in caplog.text and not ensemble.is_same_text
    each = torch.tensor([RewardScorer.from_pretrained(name)(PROMPTS, ANSWERS) for name in (folders[0], other)])
    assert ensemble(PROMPTS, ANSWERS) == pytest.approx(each.min(0).values.tolist(), abs=1e-5)
    with pytest.raises(ValueError, match=r"`diagnose` needs members that are loaded here and read the same tokens"):
        ensemble.reading_members("`diagnose`")
    longest = max(len(row) for row in ensemble.encode_rows(PROMPTS, ANSWERS))
    ensemble.max_length = longest - 1
    with pytest.raises(ValueError, match=f"Row .: A text has {longest} tokens, more than max_length={longest - 1}"):
        ensemble(PROMPTS, ANSWERS)


def test_members_with_other_templates_read_their_own_text(tmp_path, folders):
    other = save(tmp_path / "other", 1)
    tokenizer = tokenizer_of("bytes")
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}" + tokenizer.eos_token
    tokenizer.save_pretrained(other)
    ensemble = RewardEnsemble.from_pretrained([folders[0], other])
    each = torch.tensor([RewardScorer.from_pretrained(name)(PROMPTS, ANSWERS) for name in (folders[0], other)])
    assert not ensemble.is_same_text
    assert ensemble(PROMPTS, ANSWERS) == pytest.approx(each.mean(0).tolist(), abs=1e-5)


def test_columns_of_the_template_reach_every_member(folders, alone):
    scorers = [RewardScorer.from_pretrained(each) for each in folders[:2]]
    for scorer in scorers:
        scorer.tokenizer.chat_template = "{{ more }}" + scorer.tokenizer.chat_template
    columns = {"chat_template_kwargs": [{"more": "a long start"}] * 2}
    wanted = torch.tensor([scorer(PROMPTS[:2], ANSWERS[:2], **columns) for scorer in scorers]).mean(0)
    assert RewardEnsemble(scorers)(PROMPTS[:2], ANSWERS[:2], **columns) == pytest.approx(wanted.tolist(), abs=1e-5)
    assert wanted.tolist() != pytest.approx(alone[:2, :2].mean(0).tolist(), abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation": "worse"}, "`aggregation` is 'worse', but known are mean, worst, uncertainty.*'worst' meant"),
        ({"uncertainty_weight": 0.5}, "`uncertainty_weight` is 0.5, but `aggregation` is 'mean', which has no weight"),
        ({"aggregation": "uncertainty", "uncertainty_weight": 0}, "is 0, but must be a finite number above 0"),
        ({"aggregation": "uncertainty", "uncertainty_weight": -1.0}, "is -1.0, but must be a finite number above 0"),
        ({"aggregation": "uncertainty", "uncertainty_weight": float("nan")}, "is nan, but must be a finite"),
        ({"aggregation": "uncertainty", "uncertainty_weight": "0.5"}, "is '0.5', but must be a finite"),
    ],
)
def test_settings_out_of_range(folders, options, message):
    with pytest.raises(ValueError, match=message):
        RewardEnsemble.from_pretrained(folders, **options)
    with pytest.raises(ValueError, match=message):
        RewardEnsemble([RewardScorer.from_pretrained(each) for each in folders[:2]], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"centers": [0.0, 1.0]}, "`scales` None: rewards are standardized with both"),
        ({"centers": [0.0], "scales": [1.0]}, "`centers` has 1 numbers for 2 members"),
        ({"centers": [0.0, 1.0], "scales": [1.0, 0.0]}, "`scales` is .* but each must be above 0"),
        ({"centers": [0.0, float("nan")], "scales": [1.0, 1.0]}, "`centers` is .* finite number for each member"),
        ({"centers": [0.0, 1.0, 2.0], "scales": [1.0, 1.0]}, "3 `centers` and 2 `scales`"),
    ],
)
def test_centers_and_scales_that_do_not_fit(folders, options, message):
    scorers = [RewardScorer.from_pretrained(each) for each in folders[:2]]
    with pytest.raises(ValueError, match=message):
        RewardEnsemble(scorers, **options)


def test_members_that_make_no_ensemble(folders, tmp_path):
    scorer = RewardScorer.from_pretrained(folders[0])
    with pytest.raises(ValueError, match=r"has 1 member, but needs at least two. Use `RewardScorer`"):
        RewardEnsemble([scorer])
    with pytest.raises(ValueError, match=r"has 1 member, but needs at least two"):
        RewardEnsemble.from_pretrained(folders[:1])
    with pytest.raises(ValueError, match=r"Member 1 \(RewardScorer\) is the same as member 0"):
        RewardEnsemble([scorer, scorer])
    with pytest.raises(ValueError, match=r"Member 2 .* is the same as member 0"):
        RewardEnsemble.from_pretrained([*folders[:2], folders[0] + "/"])
    with pytest.raises(TypeError, match=r"Member 1 is str, but must be a RewardScorer"):
        RewardEnsemble([scorer, folders[1]])
    ensemble = RewardEnsemble([scorer, RewardScorer.from_pretrained(folders[1])])
    with pytest.raises(ValueError, match=r"Member 0 is an ensemble itself"):
        RewardEnsemble([ensemble, scorer])
    with pytest.raises(ValueError, match=r"made of scorers, which have no names.*from_pretrained"):
        ensemble.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gone is not there"):
        RewardEnsemble.from_pretrained([folders[0], str(tmp_path / "gone")])
    with pytest.raises(FileNotFoundError, match=r"not the folder of an ensemble"):
        RewardEnsemble.from_pretrained(folders[0])
    with pytest.raises(ValueError, match=r"`revision` is 'main', but an ensemble has several repositories"):
        RewardEnsemble.from_pretrained(folders, revision="main")


def test_scorers_keep_their_batch_size_unless_another_is_given(folders):
    alone = RewardScorer.from_pretrained(folders[0], batch_size=1)  # as a model needs that pads wrongly
    assert RewardEnsemble.from_pretrained([alone, folders[1]]).batch_size == alone.batch_size == 1
    ensemble = RewardEnsemble.from_pretrained([alone, folders[1]], batch_size=4)
    assert [member.batch_size for member in ensemble.members] == [4, 4]
    with pytest.raises(ValueError, match="batch_size"):
        RewardEnsemble.from_pretrained(folders, batch_size=0)


def test_ensembles_in_ensembles_and_in_scorers_are_refused(folders, tmp_path):
    RewardEnsemble.from_pretrained(folders).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is an ensemble itself. Give its members"):
        RewardEnsemble.from_pretrained([folders[0], str(tmp_path)])
    with pytest.raises(ValueError, match=r"holds an ensemble.*`RewardEnsemble.from_pretrained`"):
        RewardScorer.from_pretrained(str(tmp_path))


def test_a_member_that_gives_no_number_is_named(folders):
    broken = build_student(seed=5)
    torch.nn.init.constant_(broken.score.weight, float("nan"))
    members = [RewardScorer.from_pretrained(folders[0]), RewardScorer(broken, tokenizer_of("bytes"), batch_size=4)]
    members[1].__name__ = "broken"
    with pytest.raises(ValueError, match=r"The member broken gives row 0 the reward nan, but each must be a finite"):
        RewardEnsemble(members)(PROMPTS, ANSWERS)


def test_texts_that_make_no_scale(folders):
    ensemble = RewardEnsemble.from_pretrained(folders)
    with pytest.raises(ValueError, match=r"two texts or more, but 1 was given"):
        ensemble.calibrate(PROMPTS[:1], ANSWERS[:1])
    with pytest.raises(ValueError, match=r"rm0 gives all 2 texts the same reward"):
        ensemble.calibrate(PROMPTS[:2], [ANSWERS[0]] * 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "must hold an object whose `members`"),
        ('{"members": "a"}', "must hold an object whose `members`"),
        ('{"members": ["a"]}', "needs at least two"),
        ('{"members": ["a", "b"], "aggregations": "mean"}', "no field `aggregations`; the nearest is `aggregation`"),
        ('{"members": ["a", "b"], "aggregation": "max"}', "`aggregation` is 'max'"),
        ('{"members": ["a", "b"], "centers": [1, 2, 3], "scales": [1, 1, 1]}', "3 numbers for 2 members"),
    ],
)
def test_a_file_that_is_wrong_says_what(tmp_path, content, message):
    (tmp_path / "reward_ensemble.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        RewardEnsemble.from_pretrained(tmp_path)
