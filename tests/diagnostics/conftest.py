"""Pairs on which each fault shows, and the diagnoses of models built to have them."""

from __future__ import annotations

import numpy as np
import pytest
from support.diagnostics import FAST, RuleModel
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardScorer
from hf_interdistill.diagnostics.diagnosis import diagnose


@pytest.fixture(scope="session")
def faulty_pairs():
    """300 pairs: better answers have six good and four bad words in random places, worse ones the reverse.

    Fillers differ in number, so that the longer answer is the better one in about half of the pairs.
    """
    generator = np.random.default_rng(0)

    def answer(good: int, fillers: int) -> str:
        words = ["good"] * good + ["not"] * (10 - good) + ["the"] * fillers
        return " ".join(words[i] for i in generator.permutation(len(words)))

    return [
        {
            "prompt": "what is it like? I ask",
            "chosen": " " + answer(6, int(generator.integers(8, 13))),
            "rejected": " " + answer(4, int(generator.integers(8, 13))),
        }
        for _ in range(300)
    ]


@pytest.fixture(scope="session")
def diagnoses(faulty_pairs):
    """A diagnosis of each rule."""
    found = {}
    for rule in ("constant", "length", "end", "cue", "perfect"):
        tokenizer = tokenizer_of("bytes")
        scorer = RewardScorer(RuleModel(tokenizer, rule), tokenizer, batch_size=64)
        found[rule] = diagnose(scorer, faulty_pairs, FAST, is_progress_shown=False)
    return found
