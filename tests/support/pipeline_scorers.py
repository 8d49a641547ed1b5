"""Scorers that a job imports by name."""

import os
import random
import signal


def short(texts):
    """Many different values, so that searches go different ways."""
    return [1 - 2 * (sum(map(ord, text)) % 97) / 96 for text in texts]


def deadly(texts):
    """Kills one of the processes, as `kill -9` does, at the judge's fifth call there."""
    deadly.calls += 1
    if deadly.calls == 5 and os.environ.get("RANK") == os.environ.get("RAIN_TEST_DEADLY_RANK", "none"):
        os.kill(os.getpid(), signal.SIGKILL)
    return short(texts)


deadly.calls = 0


def moody(texts):
    """Raises at random, one time in `moody.odds`."""
    moody.calls += 1
    if moody.chance.random() * moody.odds < 1:
        raise RuntimeError("the judge is out")
    return short(texts)


moody.chance, moody.odds, moody.calls = random.Random(5), 12, 0
