"""Scorers that a job imports by name."""

import os
import random
import signal
import time

from support.rain import likes_short_words as short


def slow(texts):
    time.sleep(float(os.environ.get("RAIN_TEST_DELAY", "0")))
    return short(texts)


def failing(texts):
    """Raises from the 26th call on."""
    failing.calls += 1
    if failing.calls > 25:
        raise RuntimeError("no more")
    return short(texts)


failing.calls = 0


def killing(texts):
    """Kills one of the processes, as `kill -9` does, at the judge's fifth call there."""
    killing.calls += 1
    if killing.calls == 5 and os.environ.get("RANK") == os.environ.get("RAIN_TEST_KILLED_RANK", "none"):
        os.kill(os.getpid(), signal.SIGKILL)
    return short(texts)


killing.calls = 0


def failing_at_random(texts):
    """Raises at random, one time in `failing_at_random.odds`."""
    failing_at_random.calls += 1
    if failing_at_random.random.random() * failing_at_random.odds < 1:
        raise RuntimeError("the judge is out")
    return short(texts)


failing_at_random.random, failing_at_random.odds, failing_at_random.calls = random.Random(5), 12, 0


def failing_for(prompts, completions):
    """Raises for the prompts in `failing_for.prompts`."""
    if not set(failing_for.prompts).isdisjoint(prompts):
        raise RuntimeError("\ud800 down")
    return [value / 2 for value in short(completions)]


failing_for.prompts = []
