"""Scorers that a job imports by name."""

import os
import time

from support.rain import likes_short_words


def short(texts):
    return likes_short_words(texts)


def slow(texts):
    time.sleep(float(os.environ.get("RAIN_TEST_DELAY", "0")))
    return likes_short_words(texts)


def failing(texts):
    failing.calls += 1
    if failing.calls > 25:
        raise RuntimeError("no more")
    return likes_short_words(texts)


failing.calls = 0
