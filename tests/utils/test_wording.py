"""The three verdicts of all reports."""

from __future__ import annotations

import math

import pytest

from hf_interdistill.utils.wording import verdict_of


@pytest.mark.parametrize(
    "low, high, level, verdict",
    [
        (0.1, 0.2, 0.0, "pass"),
        (-0.2, -0.1, 0.0, "flag"),
        (-0.1, 0.1, 0.0, "inconclusive"),
        (0.0, 0.1, 0.0, "inconclusive"),  # an interval that touches the level includes it
        (-0.1, 0.0, 0.0, "inconclusive"),
        (0.4, 0.6, 0.5, "inconclusive"),
        (0.51, 0.6, 0.5, "pass"),
        (0.4, 0.49, 0.5, "flag"),
        (math.nan, math.nan, 0.0, "inconclusive"),
    ],
)
def test_a_verdict_follows_from_the_interval(low, high, level, verdict):
    assert verdict_of(low, high, level) == verdict
