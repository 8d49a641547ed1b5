"""Each measure detects the model that was built to have its fault, and clears the others."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from hf_interdistill.diagnostics.config import DiagnosisConfig
from hf_interdistill.diagnostics.measures.attention import measure_attention
from hf_interdistill.diagnostics.measures.calibration import measure_calibration
from hf_interdistill.diagnostics.measures.estimates import Estimate, accuracy, bootstrap, mean, percent
from hf_interdistill.diagnostics.measures.pair_results import PairResults
from hf_interdistill.scoring.metrics import calibration_error, in_random_order

CONFIG = DiagnosisConfig(resamples=300)


def verdicts(diagnosis) -> dict[str, str]:
    return {name: finding.verdict for name, finding in diagnosis.findings().items()}


def test_perfect_model_passes(diagnoses):
    found = diagnoses["perfect"]
    assert found.accuracy.accuracy.value == 1.0 and found.accuracy.ties.value == 0.0 and found.pairs == 300
    expected = dict.fromkeys(("accuracy", "masking", "cue", "length", "calibration"), "pass")
    assert verdicts(found) == expected
    assert found.examples == []


def test_model_that_scores_the_end_alone(diagnoses):
    found = diagnoses["end"]
    assert found.accuracy.accuracy.low > 0.5
    assert verdicts(found)["masking"] == "flag" and "from the last words alone" in found.masking.finding().sentence
    assert verdicts(found)["length"] != "flag"
    curve = found.masking
    for first in curve.first:  # it never read what is taken away
        assert first.value == curve.whole.value
    assert curve.prompt.value == curve.response_start.value == curve.whole.value and curve.drop.value == 0.0
    assert curve.last[0].value != curve.whole.value


def test_removal_hurts_a_model_that_uses_the_whole_text(diagnoses):
    curve = diagnoses["perfect"].masking
    values = [curve.whole.value, *(estimate.value for estimate in curve.first)]
    assert values == sorted(values, reverse=True) and values[-1] < 0.8
    assert curve.prompt.value == 1.0 and 0.5 < curve.response_start.value < 0.8
    assert curve.drop.value == pytest.approx(1.0 - values[-1]) and curve.drop.low > 0.15


def test_model_that_scores_length(diagnoses):
    found = diagnoses["length"]
    assert found.length.longer_is_better.value == 1.0 and found.length.longer_is_worse.value == 0.0
    assert found.length.correlation.value == pytest.approx(1.0)
    assert verdicts(found)["length"] == "flag" and "prefers longer responses" in found.length.finding().sentence
    assert verdicts(found)["cue"] == "flag"  # the phrase makes the response longer
    assert found.examples and all(example["margin"] < 0 for example in found.examples)


def test_model_that_rewards_the_cue(diagnoses):
    found = diagnoses["cue"]
    assert verdicts(found) == {**verdicts(diagnoses["perfect"]), "cue": "flag"}
    assert found.cue.on_rejected.value == 0.0 and found.cue.on_chosen.value == found.cue.plain.value == 1.0
    assert found.cue.gain.value > 2 and found.cue.change.value == 1.0


def test_constant_model(diagnoses):
    found = diagnoses["constant"]
    assert found.accuracy.ties.value == 1.0 and np.isnan(found.accuracy.accuracy.value)
    assert verdicts(found)["accuracy"] == "flag" and "same reward" in found.accuracy.finding().sentence
    assert verdicts(found)["masking"] == verdicts(found)["length"] == "inconclusive"
    assert found.calibration.nll.value == pytest.approx(np.log(2))
    assert found.to_dict()["accuracy"]["accuracy"]["value"] is None


def test_missing_attention_is_reported(diagnoses):
    found = diagnoses["perfect"]
    assert found.attention is None and "no softmax attention" in found.attention_problem
    assert "attention" not in found.findings()


def results(margins, attention=None, lengths=None) -> PairResults:
    pairs = len(margins)
    rewards = np.stack([margins, np.zeros(pairs)], axis=1)
    return PairResults(
        rewards={"full": rewards, "cue": rewards},
        lengths=np.ones((pairs, 2)) if lengths is None else lengths,
        attention=np.full((pairs, 6), np.nan) if attention is None else attention,
        texts=[{}] * pairs,
        left_out={},
    )


@pytest.mark.parametrize(("shift", "verdict"), [(0.1, "flag"), (0.0, "pass"), (-0.1, "pass")])
def test_attention_of_wrong_pairs(shift, verdict):
    generator = np.random.default_rng(1)
    margins = generator.choice([-1.0, 1.0], size=400)
    last = 0.3 + 0.01 * generator.standard_normal(400) + shift * (margins < 0)
    attention = np.column_stack([np.full(400, 0.5), *[(1 - last) / 4] * 4, last])
    found = measure_attention(results(margins, attention), CONFIG)
    assert found.finding().verdict == verdict
    assert found.last_gap.value == pytest.approx(last[margins < 0].mean() - last[margins > 0].mean())
    assert found.wrong.sink.pairs + found.right.sink.pairs == 400 and found.right.sink.value == 0.5


def test_few_wrong_pairs_give_no_conclusion_on_attention():
    margins = np.array([1.0] * 50 + [-1.0] * 9)
    found = measure_attention(results(margins, np.full((59, 6), 0.2)), CONFIG)
    assert found.finding().verdict == "inconclusive" and "9 wrong ones" in found.finding().sentence


def test_calibration_against_plain_python():
    generator = np.random.default_rng(2)
    margins = generator.normal(0.5, 2.0, size=57)
    found = measure_calibration(results(margins), CONFIG)
    signed, labels = in_random_order(margins, CONFIG.seed)
    probabilities = [1 / (1 + np.exp(-margin)) for margin in signed]
    error = 0.0
    for number in range(10):
        members = [i for i, p in enumerate(probabilities) if number / 10 <= p < (number + 1) / 10]
        error += abs(sum(labels[i] - probabilities[i] for i in members)) / 57
    assert found.ece.value == pytest.approx(error)
    squares = [(p - y) ** 2 for p, y in zip(probabilities, labels, strict=True)]
    assert found.brier.value == pytest.approx(np.mean(squares))
    assert found.nll.value == pytest.approx(np.mean([np.log(1 + np.exp(-margin)) for margin in margins]))
    assert 10 < labels.sum() < 47
    assert calibration_error(np.array([1.0, 0.0]), np.array([1.0, 0.0]), 10) == 0.0


def bins_by_hand(pairs: list[tuple[float, int]]) -> list[tuple[float, float, float, float, int]]:
    """Mean, lowest and highest probability, share and number of each bin: as many pairs in each, equals together."""
    pairs = sorted(pairs, key=lambda pair: pair[0])
    count = min(5, max(1, len(pairs) // 10))
    groups: list[list[tuple[float, int]]] = [[] for _ in range(count)]
    for place, pair in enumerate(pairs):
        number = sum(place >= round(len(pairs) * each / count) for each in range(1, count))
        groups[number].append(pair)
    for lower, upper in pairwise(groups):  # equal probabilities that are parted go to the upper bin
        while lower and upper and lower[-1][0] == upper[0][0]:
            upper.insert(0, lower.pop())
    found = []
    for group in groups:
        if group:
            values = [probability for probability, _ in group]
            share = sum(label for _, label in group) / len(group)
            found.append((sum(values) / len(values), values[0], values[-1], share, len(group)))
    return found


@pytest.mark.parametrize("count", [1, 9, 19, 20, 57, 203])
@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_the_diagram_has_few_bins_of_equally_many_pairs_with_exact_intervals(count, decimals):
    margins = np.random.default_rng(count).normal(0.5, 1.5, size=count).round(decimals)
    found = measure_calibration(results(margins), CONFIG).bins
    signed, labels = in_random_order(margins, CONFIG.seed)
    expected = bins_by_hand(
        [(1 / (1 + math.exp(-margin)), int(label)) for margin, label in zip(signed, labels, strict=True)]
    )
    assert len(found) == len(expected) <= 5
    for one, (mean_of_bin, lowest, highest, share, pairs) in zip(found, expected, strict=True):
        assert (one.probability, one.lowest, one.highest) == pytest.approx((mean_of_bin, lowest, highest))
        assert one.share.value == pytest.approx(share) and one.share.pairs == pairs
        hits = round(share * pairs)
        # Clopper-Pearson: at the bounds, so many hits or more (fewer) have 2.5 %.
        if hits:
            assert at_least(hits, pairs, one.share.low) == pytest.approx(0.025, abs=1e-6)
        if hits < pairs:
            assert 1 - at_least(hits + 1, pairs, one.share.high) == pytest.approx(0.025, abs=1e-6)
    if decimals == 8 and count >= 50:
        assert {one.share.pairs for one in found} <= {count // 5, count // 5 + 1}


def at_least(hits: int, trials: int, share: float) -> float:
    return sum(math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(hits, trials + 1))


def test_calibration_of_few_pairs_gives_no_conclusion():
    assert (
        measure_calibration(results(np.random.default_rng(5).normal(0.5, 1.0, 20)), CONFIG).finding().verdict
        == "inconclusive"
    )


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "pass"), (8.0, "flag"), (0.1, "flag")])
def test_calibration_of_overconfident_and_underconfident_models(factor, verdict):
    generator = np.random.default_rng(3)
    true = generator.normal(0, 2.0, size=2000)
    is_right = generator.random(2000) < 1 / (1 + np.exp(-np.abs(true)))
    margins = factor * np.where(is_right, np.abs(true), -np.abs(true))
    assert measure_calibration(results(margins), CONFIG).finding().verdict == verdict


def test_bootstrap_of_a_mean_is_the_normal_interval():
    values = np.random.default_rng(4).normal(3.0, 2.0, size=500)
    found = bootstrap(mean, values, resamples=4000, seed=0)
    error = values.std() / np.sqrt(500)
    assert found.value == pytest.approx(values.mean()) and found.pairs == 500
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.02)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.02)
    assert bootstrap(mean, values, resamples=300, seed=0) == bootstrap(mean, values, resamples=300, seed=0)
    assert bootstrap(mean, values, resamples=300, seed=0) != bootstrap(mean, values, resamples=300, seed=1)


def test_bootstrap_of_nothing_and_of_ties():
    assert np.isnan(bootstrap(mean, np.array([]), resamples=10, seed=0).value)
    ties = bootstrap(accuracy, np.zeros(5), resamples=10, seed=0)
    assert np.isnan(ties.value) and np.isnan(ties.low) and percent(ties) == "not defined (no pair is decided)"
    assert accuracy(np.array([1.0, -1.0, 2.0, 0.0])) == pytest.approx(2 / 3)
    assert percent(Estimate(0.5, 0.25, 0.75, 4)) == "50.0\N{NO-BREAK SPACE}% (25.0 to 75.0)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fractions": (0.5, 1.0)}, "must lie between 0 and 1"),
        ({"fractions": (0.5, 0.2)}, "must rise"),
        ({"cue": "  "}, "must be a phrase"),
        ({"resamples": 0}, "`resamples` is 0"),
        ({"limit": 0}, "`limit` is 0"),
        ({"context_measures": ("swapped_prompts",)}, "names 'swapped_prompts', .* Is `swapped_prompt` meant?"),
        ({"context_measures": ("turn_removal",) * 2}, "must list some of swapped_prompt, .* each once"),
        ({"context_measures": "turn_removal"}, "`context_measures` is 'turn_removal'"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        DiagnosisConfig(**options)
