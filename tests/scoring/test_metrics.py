"""Measures of rewards: by hand, against plain Python, and as modules of `evaluate` inside a trainer."""

from __future__ import annotations

import math

import evaluate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import build_student
from trl import RewardConfig, RewardTrainer

from hf_interdistill import (
    InteractionDistillationConfig,
    InteractionDistillationTrainer,
    RewardScorer,
    metric_path,
    pair_rewards,
    reward_metrics,
)
from hf_interdistill.metrics.calibration import Calibration
from hf_interdistill.scoring import metrics
from hf_interdistill.scoring.best_of_n import best_of_n_scores

MARGINS = st.lists(st.floats(-30, 30).map(lambda value: round(value, 2)), min_size=1, max_size=40)


def test_accuracy_by_hand():
    assert metrics.pairwise_accuracy([2.0, -1.0, 0.0, 0.5]) == {"pairwise_accuracy": 2 / 3, "ties": 1, "pairs": 4}
    only_ties = metrics.pairwise_accuracy([0.0, 0.0])
    assert math.isnan(only_ties["pairwise_accuracy"]) and only_ties["ties"] == 2


@given(MARGINS)
@settings(deadline=None)
def test_accuracy_is_antisymmetric_and_knows_only_signs(margins):
    values = metrics.pairwise_accuracy(margins)
    mirrored = metrics.pairwise_accuracy([-margin for margin in margins])
    assert values["ties"] == mirrored["ties"] == margins.count(0)
    assert metrics.pairwise_accuracy([3 * margin for margin in margins]) == pytest.approx(values, nan_ok=True)
    if values["ties"] < values["pairs"]:
        assert values["pairwise_accuracy"] + mirrored["pairwise_accuracy"] == pytest.approx(1)
    longer = metrics.pairwise_accuracy([*margins, 0.0])
    assert longer["pairwise_accuracy"] == pytest.approx(values["pairwise_accuracy"], nan_ok=True)


def plain_calibration(probabilities, labels, bins):
    """The formulas, one pair after the other."""
    groups = [[] for _ in range(bins)]
    for p, y in zip(probabilities, labels, strict=True):
        groups[min(int(p * bins), bins - 1)].append((p, y))
    ece = 0.0
    for group in filter(None, groups):
        mean_p, mean_y = (sum(column) / len(group) for column in zip(*group, strict=True))
        ece += len(group) / len(labels) * abs(mean_y - mean_p)
    brier = sum((p - y) ** 2 for p, y in zip(probabilities, labels, strict=True)) / len(labels)
    nll = -sum(math.log(p if y else 1 - p) for p, y in zip(probabilities, labels, strict=True)) / len(labels)
    return {"ece": ece, "brier": brier, "nll": nll}


def test_calibration_by_hand():
    three = math.log(3)  # sigmoid = 3/4
    values = metrics.calibration([three, three, three, -three], bins=1)
    assert values["brier"] == pytest.approx((3 * 0.25**2 + 0.75**2) / 4)
    assert values["nll"] == pytest.approx(-(3 * math.log(0.75) + math.log(0.25)) / 4)
    _, labels = metrics.in_random_order([three] * 4)
    first = [0.75 if y else 0.25 for y in labels]
    first[3] = 1 - first[3]
    assert values["ece"] == pytest.approx(abs(sum(labels) - sum(first)) / 4)
    tie = metrics.calibration([0.0])
    assert tie["brier"] == 0.25 and tie["nll"] == pytest.approx(math.log(2)) and tie["ece"] == 0.5


@given(MARGINS, st.integers(1, 20), st.integers(0, 5))
@settings(deadline=None)
def test_calibration_is_that_of_plain_formulas_in_random_order(margins, bins, seed):
    shown, labels = metrics.in_random_order(margins, seed)
    assert [m if y else -m for m, y in zip(shown, labels, strict=True)] == margins
    values = metrics.calibration(margins, bins, seed)
    probabilities = [1 / (1 + math.exp(-margin)) for margin in shown]
    assert values == pytest.approx(plain_calibration(probabilities, labels, bins), rel=1e-4, abs=1e-9)
    other = metrics.calibration(margins, bins, seed + 1)
    assert other["brier"] == pytest.approx(values["brier"]) and other["nll"] == pytest.approx(values["nll"])
    assert metrics.calibration(margins, bins, seed) == values


def test_a_calibrated_model_has_no_calibration_error_and_an_overconfident_one_has():
    generator = np.random.default_rng(3)
    margins = generator.normal(size=20_000) * 2
    labels = generator.random(20_000) < 1 / (1 + np.exp(-margins))
    true = np.where(labels, margins, -margins)  # margin of the preferred over the other
    assert metrics.calibration(true)["ece"] < 0.015
    assert metrics.calibration(3 * true)["ece"] > 0.08
    assert metrics.calibration(3 * true)["nll"] > metrics.calibration(true)["nll"]


def test_order_is_random():
    _, labels = metrics.in_random_order(np.ones(2_000), seed=1)
    assert 0.45 < labels.mean() < 0.55
    assert (labels != metrics.in_random_order(np.ones(2_000), seed=2)[1]).any()


def test_length_bias_by_hand():
    values = metrics.length_bias([1.0, -1.0, 2.0, 0.0], [-5, -3, 4, -1])
    assert values["accuracy_longer_is_worse"] == 0.5 and values["pairs_longer_is_worse"] == 3  # the tie is apart
    mean_m, mean_d = 0.5, -1.25
    pairs = list(zip([1.0, -1.0, 2.0, 0.0], [-5, -3, 4, -1], strict=True))
    covariance = sum((m - mean_m) * (d - mean_d) for m, d in pairs)
    spread = math.sqrt(sum((m - mean_m) ** 2 for m, _ in pairs) * sum((d - mean_d) ** 2 for _, d in pairs))
    assert values["length_correlation"] == pytest.approx(covariance / spread)
    assert math.isnan(metrics.length_bias([1.0, 2.0], [3, 3])["length_correlation"])
    swapped = metrics.length_bias([-1.0, 1.0, -2.0, 0.0], [5, 3, -4, 1])
    assert swapped["length_correlation"] == pytest.approx(values["length_correlation"])


def test_bad_input_is_explained():
    with pytest.raises(ValueError, match="position 1 is nan"):
        metrics.pairwise_accuracy([1.0, float("nan")])
    with pytest.raises(ValueError, match="at least one margin"):
        metrics.calibration([])
    with pytest.raises(ValueError, match=r"shapes \(2,\) \(chosen\) and \(1,\)"):
        metrics.pair_margins([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="bins=0"):
        metrics.calibration([1.0], bins=0)
    with pytest.raises(ValueError, match="2 margins and 1 length"):
        metrics.length_bias([1.0, 2.0], [1])
    with pytest.raises(ValueError, match="there are pairwise_accuracy"):
        metric_path("accuracy")


@pytest.fixture(scope="module")
def evaluate_cache(tmp_path_factory):
    """`evaluate` copies modules and writes inputs: not into the user's cache."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(folder / "modules"))
        yield str(folder / "metrics")


def test_modules_of_evaluate(evaluate_cache):
    names = ("pairwise_accuracy", "calibration", "length_bias")
    combined = evaluate.combine([evaluate.load(metric_path(name), cache_dir=evaluate_cache) for name in names])
    chosen, rejected = [0.5, 2.0, 1.0, 1.0], [0.0, 3.0, 1.0, -1.0]
    lengths = {"chosen_lengths": [9, 4, 2, 2], "rejected_lengths": [3, 8, 2, 9]}
    margins = metrics.pair_margins(chosen, rejected)
    differences = np.subtract(lengths["chosen_lengths"], lengths["rejected_lengths"])
    expected = {
        **metrics.pairwise_accuracy(margins),
        **metrics.calibration(margins, bins=4, seed=7),
        **metrics.length_bias(margins, differences),
    }
    found = combined.compute(predictions=chosen, references=rejected, bins=4, seed=7, **lengths)
    assert found == pytest.approx(expected)
    with pytest.raises(TypeError, match="`bin` is not an input"):
        combined.compute(predictions=chosen, references=rejected, bin=4, **lengths)
    accuracy = evaluate.load(metric_path("pairwise_accuracy"), cache_dir=evaluate_cache)
    for start in (0, 2):  # as batches come
        accuracy.add_batch(predictions=chosen[start : start + 2], references=rejected[start : start + 2])
    assert accuracy.compute() == metrics.pairwise_accuracy(margins)
    imported = Calibration(cache_dir=evaluate_cache).compute(predictions=chosen, references=rejected)
    assert imported == pytest.approx(metrics.calibration(margins))


def test_best_of_n_of_evaluate(evaluate_cache):
    module = evaluate.load(metric_path("best_of_n"), cache_dir=evaluate_cache)
    rewards, values = [[3.0, 1.0, 2.0], [0.0, 1.0, 1.0]], [[1, 0, 0], [1, 0, 1]]
    expected = {f"best_of_{n}": np.mean(best_of_n_scores(rewards, values, n)) for n in (1, 2, 3)}
    assert module.compute(predictions=rewards, references=values) == pytest.approx(expected)
    assert module.compute(predictions=rewards, references=values, sizes=[3]) == {"best_of_3": 1.0 / 2 + 0.5 / 2}
    with pytest.raises(ValueError, match="from 1 to 3"):
        module.compute(predictions=rewards, references=values, sizes=[4])
    with pytest.raises(ValueError, match="the same number of candidates"):
        module.compute(predictions=[[1.0]], references=[[1.0, 2.0]])


SETTINGS = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "max_length": None}


@pytest.mark.parametrize("kind", ["trl", "ours"])
def test_in_a_trainer_no_pair_is_lost(kind, dataset, tokenizer, tmp_path):
    """Five pairs in batches of two: the last batch is short."""
    trainer_class, config_class, extra = {
        "trl": (RewardTrainer, RewardConfig, {}),
        "ours": (InteractionDistillationTrainer, InteractionDistillationConfig, {"alignment_weight": 0}),
    }[kind]
    args = config_class(output_dir=str(tmp_path), per_device_eval_batch_size=2, **SETTINGS, **extra)
    model, pairs = build_student(), dataset.select(range(5))
    trainer = trainer_class(
        model,
        args,
        train_dataset=dataset.select(range(2)),
        eval_dataset=pairs,
        processing_class=tokenizer,
        compute_metrics=reward_metrics,
        preprocess_logits_for_metrics=pair_rewards,
    )
    found = trainer.evaluate()
    scorer = RewardScorer(model, tokenizer)
    chosen, rejected = (scorer(pairs["prompt"], pairs[side]) for side in ("chosen", "rejected"))
    margins = metrics.pair_margins(chosen, rejected)
    expected = {**metrics.pairwise_accuracy(margins), **metrics.calibration(margins)}
    assert expected["pairs"] == 5
    for name, value in expected.items():
        assert found[f"eval_{name}"] == pytest.approx(value, abs=1e-4), name
    trainer.preprocess_logits_for_metrics = None
    with pytest.raises(ValueError, match=r"shape \(9, 1\).*preprocess_logits_for_metrics=pair_rewards"):
        trainer.evaluate()  # TRL: four whole pairs, and of the fifth the chosen reward alone
