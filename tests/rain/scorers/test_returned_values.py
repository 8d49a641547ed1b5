"""What scorers return: any form of numbers counts, anything else is an error that says so."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch
from support.rain import build_causal, likes_short_words, rain

from hf_interdistill.rain.scorers.base import Costs, Exchange, Scorer, ScorerError
from hf_interdistill.rain.scorers.builtin import FunctionScorer, RewardModelScorer

EXCHANGES = [Exchange("Hi", " a"), Exchange("Hi", " b")]


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([0.5, -1.0]),
        torch.tensor([[0.5], [-1.0]], requires_grad=True),
        torch.tensor([0.5, -1.0], dtype=torch.bfloat16),
        [torch.tensor(0.5), np.float32(-1)],
        np.array([[0.5], [-1.0]]),
        (value for value in (Fraction(1, 2), -1)),
        {"first": 0.5, "second": -1}.values(),
    ],
    ids=lambda values: type(values).__name__,
)
def test_numbers_of_any_kind_are_values(values):
    assert FunctionScorer(lambda texts: values).score_batch(EXCHANGES)[0] == [0.5, -1.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("01", "must return one number per text, but returned '01'"),
        (b"\0\1", "must return one number per text"),
        (["0.5", "1"], "must return one number per text, but returned.*'0.5'"),
        ({0: 0.5, 1: 0.2}, "must return one number per text, but returned {0: 0.5, 1: 0.2}"),
        ({0.5, 0.25}, "must return one number per text, but returned {"),
        (torch.zeros(2, 2), "must return one number per text, but returned tensor"),
        (np.zeros((2, 3)), "must return one number per text, but returned array"),
        (0.5, "must return one number per text, but returned 0.5"),
        (None, "must return one number per text, but returned None"),
        ([None, 0.5], r"must return one number per text, but returned \[None"),
        ([10**400, 0], "must return one number per text|must lie between -1 and 1"),
        (torch.zeros(3), "returned 3 values for 2 texts"),
        ([], "returned 0 values for 2 texts"),
        ([float("nan"), 0], "returned NaN"),
    ],
)
def test_other_values_are_named(values, message):
    with pytest.raises(ScorerError, match=message):
        FunctionScorer(lambda texts: values).score_batch(EXCHANGES)
    if not isinstance(values, list) or not any(isinstance(each, (int, float)) for each in values):
        with pytest.raises(ScorerError, match=message.replace("must lie", "|")):
            RewardModelScorer(lambda prompts, completions: values).score_batch(EXCHANGES)


def test_costs_of_another_number_of_texts_are_named():
    class Counting(Scorer):
        def score(self, exchanges):
            return [0.0] * len(exchanges)

        def costs(self, count):
            return Costs([5])

    with pytest.raises(ScorerError, match="Counting returned costs of 1 texts, but scored 2"):
        Counting().score_batch(EXCHANGES)


@pytest.mark.parametrize("kind", [FunctionScorer, RewardModelScorer])
@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "3", True])
def test_a_timeout_is_a_positive_number(kind, timeout):
    with pytest.raises(ValueError, match=r"`timeout` is .* but must be None or a positive number of seconds"):
        kind(likes_short_words, timeout=timeout)


@pytest.mark.parametrize("settings", [{"center": float("nan")}, {"center": "0"}, {"scale": "1"}, {"scale": True}])
def test_scale_and_center_are_numbers(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"`{name}` is {settings[name]!r}, but must be a"):
        RewardModelScorer(likes_short_words, **settings)


class Counted:
    """A reward that counts tokens as `RewardScorer` does; while one thread reads, another may score."""

    def __init__(self):
        self.last_token_counts, self.last_forward_passes = [], 0
        self.has_other_scored = threading.Event()

    def __call__(self, prompts, completions):
        self.last_token_counts, self.last_forward_passes = [len(each) for each in completions], 1
        if threading.current_thread().name != "other":
            self.has_other_scored.wait(0.2)  # the other thread may score now, and must not change our counts
        return likes_short_words(completions)


def test_threads_with_one_reward_model_count_their_own_tokens():
    reward = Counted()
    scorer = RewardModelScorer(reward)
    ours, theirs = scorer.bind(None, None), scorer.bind(None, None)

    def other():
        theirs.score_batch([Exchange("Hi", "x" * 9)] * 3)
        reward.has_other_scored.set()

    thread = threading.Thread(target=other, name="other")
    results = []
    first = threading.Thread(target=lambda: results.append(ours.score_batch(EXCHANGES)))
    first.start()
    thread.start()
    first.join()
    thread.join()
    assert results[0][1] == Costs([2, 2], 1)
    assert theirs.costs(3) == Costs([9, 9, 9], 1)
    assert ours.costs(2) == Costs([2, 2], 1)


def test_two_models_search_with_one_scorer_in_threads_as_alone(tokenizer):
    models, scorer = [build_causal(seed=seed) for seed in (0, 1)], RewardModelScorer(Counted())
    scorer.reward.has_other_scored.set()

    def search(model):
        out = rain(model, tokenizer, rain_scorer=scorer, max_new_tokens=5)
        return [(each.tokens, each.stats["forward_tokens"]) for each in out.rain]

    alone = [search(model) for model in models]
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(search, models)) == alone
