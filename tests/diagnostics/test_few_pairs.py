"""No verdict from fewer pairs than it takes, and sentences that follow the sign of what was measured."""

from __future__ import annotations

import numpy as np
import pytest

from hf_interdistill.diagnostics.config import DiagnosisConfig
from hf_interdistill.diagnostics.measures.accuracy import measure_accuracy
from hf_interdistill.diagnostics.measures.best_of_n import measure_best_of_n
from hf_interdistill.diagnostics.measures.calibration import measure_calibration
from hf_interdistill.diagnostics.measures.cue import measure_cue
from hf_interdistill.diagnostics.measures.estimates import Estimate, bootstrap, lost, mean, share_of
from hf_interdistill.diagnostics.measures.length import measure_length
from hf_interdistill.diagnostics.measures.masking import measure_masking
from hf_interdistill.diagnostics.measures.noise import measure_noise
from hf_interdistill.diagnostics.measures.pair_results import PairResults
from hf_interdistill.utils.binomial import share_interval, unseen_share

CONFIG = DiagnosisConfig(resamples=300, fractions=(0.8,))


def results(margins, cue=0.0, lengths=None, masked=None) -> PairResults:
    """Records of pairs: `cue` is what the phrase adds to a reward, `masked` the margins of every masked text."""
    margins = np.asarray(margins, dtype=float)
    rewards = np.stack([margins, np.zeros(len(margins))], axis=1)
    other = rewards if masked is None else np.stack([np.asarray(masked, dtype=float), np.zeros(len(margins))], axis=1)
    kinds = ("first 0.8", "last 0.8", "prompt", "response start")
    return PairResults(
        rewards={"full": rewards, "cue": rewards + np.reshape(cue, (-1, 1)), **dict.fromkeys(kinds, other)},
        lengths=np.ones((len(margins), 2)) if lengths is None else np.asarray(lengths, dtype=float),
        attention=np.full((len(margins), 6), np.nan),
        texts=[{}] * len(margins),
        left_out={},
    )


@pytest.mark.parametrize(
    ("right", "wrong", "verdict", "words"),
    [
        (6, 1, "inconclusive", "do not tell it from chance"),  # p = 0.125
        (5, 0, "inconclusive", "do not tell it from chance"),  # p = 0.0625
        (6, 0, "pass", ": better than chance"),  # p = 0.03125
        (0, 6, "flag", ": worse than chance"),
        (1, 6, "inconclusive", "do not tell it from chance"),
        (60, 40, "inconclusive", "do not tell it from chance"),  # p = 0.0569
        (61, 39, "pass", ": better than chance"),  # p = 0.0352
    ],
)
def test_accuracy_is_an_exact_test(right, wrong, verdict, words):
    found = measure_accuracy(results([1.0] * right + [-1.0] * wrong))
    assert (found.accuracy.low, found.accuracy.high) == share_interval(right, right + wrong)
    assert found.finding().verdict == verdict and words in found.finding().sentence


def test_ties_are_flagged_only_where_they_are_certainly_many():
    assert measure_accuracy(results([0.0] + [1.0] * 19)).finding().verdict == "pass"  # 1 of 20, 0.001 to 0.25
    assert measure_accuracy(results([0.0] * 6 + [1.0] * 19)).finding().verdict == "flag"


@pytest.mark.parametrize(("pairs", "verdict"), [(9, "inconclusive"), (60, "inconclusive"), (80, "pass")])
def test_a_phrase_that_changes_nothing_passes_with_enough_pairs(pairs, verdict):
    """80 pairs without a change exclude a share of 5 %, 60 do not."""
    found = measure_cue(results([1.0, -1.0] * (pairs // 2) + [1.0] * (pairs % 2)), CONFIG)
    assert found.change.value == 0.0 and found.finding().verdict == verdict
    assert (found.change.high < 0.05) == (unseen_share(pairs) < 0.05)


@pytest.mark.parametrize(
    ("added", "words", "absent"),
    [
        (3.0, ("raises rewards", "on the worse response", "The phrase buys reward."), ("penalized", "lowers")),
        (-3.0, ("lowers rewards", "on the better response", "The phrase is penalized."), ("buys", "raises")),
    ],
)
def test_a_penalty_is_no_purchase(added, words, absent):
    margins = np.tile([1.0, 2.0, -1.0], 20)
    found = measure_cue(results(margins, cue=np.full(60, added)), CONFIG)
    finding = found.finding()
    assert found.gain.value == pytest.approx(added / margins.std())
    assert finding.verdict == "flag" and "a loss of " in finding.sentence
    assert all(word in finding.sentence for word in words), finding.sentence
    assert not any(word in finding.sentence for word in absent), finding.sentence


def test_a_phrase_of_no_certain_direction_is_neither():
    generator = np.random.default_rng(0)
    found = measure_cue(results(np.full(60, 1.0), cue=generator.choice([-4.0, 4.0], 60)), CONFIG)
    assert found.gain.low < 0 < found.gain.high
    finding = found.finding()
    assert "no certain direction" in finding.sentence and finding.verdict == "flag"
    assert "buys" not in finding.sentence and "penalized" not in finding.sentence and "misleads" in finding.sentence


def test_a_loss_that_is_none_is_a_gain():
    assert lost(Estimate(0.03, 0.01, 0.05, 9)) == "a loss of 3.0 points (1.0 to 5.0)"
    assert lost(Estimate(-0.03, -0.05, 0.01, 9)) == "a gain of 3.0 points (-1.0 to 5.0)"
    margins = np.array([1.0] * 30 + [-1.0] * 10)
    better = np.array([1.0] * 36 + [-1.0] * 4)
    finding = measure_noise(margins, {0.3: ("a", better)}, left_out=0, config=CONFIG).finding()
    assert "a gain of 15.0 points" in finding.sentence and "a loss of" not in finding.sentence


def test_a_pick_below_a_random_choice_is_said_to_be_below():
    generator = np.random.default_rng(0)
    gold = generator.normal(size=(40, 8))
    finding = measure_best_of_n((-gold).tolist(), gold.tolist(), CONFIG, gold_name="truth").finding()
    assert "below a random choice" in finding.sentence and "above a random choice" not in finding.sentence
    assert finding.verdict == "flag" and "-" not in finding.sentence.split("below")[0]


@pytest.mark.parametrize(("pairs", "verdict"), [(3, "inconclusive"), (20, "flag")])
def test_length_needs_pairs_of_both_kinds(pairs, verdict):
    lengths = [[9, 5]] * pairs + [[5, 9]] * pairs
    found = measure_length(results([1.0] * pairs + [-1.0] * pairs, lengths=lengths), CONFIG)
    assert found.gap.value == 1.0 and found.finding().verdict == verdict
    assert ("prefers longer responses" in found.finding().sentence) == (verdict == "flag")
    reverse = measure_length(results([-1.0] * pairs + [1.0] * pairs, lengths=lengths), CONFIG).finding()
    assert reverse.verdict == verdict and ("likes brevity" in reverse.sentence) == (verdict == "flag")


def test_length_does_not_pass_with_few_pairs():
    few, many = ([[9, 5]] * count + [[5, 9]] * count for count in (12, 60))
    for lengths, verdict in ((few, "inconclusive"), (many, "pass")):
        assert measure_length(results([1.0] * len(lengths), lengths=lengths), CONFIG).finding().verdict == verdict


@pytest.mark.parametrize(
    ("pairs", "verdict", "words"),
    [
        (5, "inconclusive", "do not tell it from chance"),
        (8, "inconclusive", "too uncertain"),
        (40, "flag", "last words"),
    ],
)
def test_masking_needs_an_advantage_and_pairs(pairs, verdict, words):
    finding = measure_masking(results([1.0] * pairs), CONFIG).finding()
    assert finding.verdict == verdict and words in finding.sentence


def test_label_noise_does_not_pass_with_few_pairs():
    for pairs, verdict in ((6, "inconclusive"), (60, "pass")):
        margins = np.ones(pairs)
        assert measure_noise(margins, {0.2: ("a", margins)}, 0, CONFIG).finding().verdict == verdict


@pytest.mark.parametrize(("pairs", "verdict"), [(3, "inconclusive"), (20, "inconclusive"), (100, "pass")])
def test_confident_models_do_not_pass_with_few_pairs(pairs, verdict):
    assert measure_calibration(results([9.0] * pairs), CONFIG).finding().verdict == verdict


def test_few_confident_mistakes_are_no_bad_log_loss():
    assert measure_calibration(results([-3.0] * 2), CONFIG).finding().verdict == "inconclusive"


def test_intervals_of_pairs_that_are_all_alike():
    alike = bootstrap(mean, np.zeros(10), resamples=50, seed=0, bounds=(-1.0, 1.0))
    assert (alike.low, alike.high) == pytest.approx((-unseen_share(10), unseen_share(10)))
    assert share_of(np.array([1.0, 0.5, 0.0, 1.0])).value == 0.625
    assert np.isnan(share_of(np.array([])).value)
