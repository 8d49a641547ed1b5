"""Numbers in sentences and tables, and the words for what they show."""

from __future__ import annotations

import math

PASS, FLAG, INCONCLUSIVE = "pass", "flag", "inconclusive"  # the verdicts of all reports; there is no other


def verdict_of(low: float, high: float, level: float = 0.0) -> str:
    """What an interval shows beside a level: `pass` above it, `flag` below it, `inconclusive` around it.

    Of a difference the level is 0, of an accuracy it is chance. An interval of NaN is inconclusive.
    """
    if low > level:
        return PASS
    return FLAG if high < level else INCONCLUSIVE


def signed(value: float) -> str:
    """A share in percentage points with its sign, with so many digits that a sign is never lost: `+0.8`, `-0.03`."""
    points = 100 * value
    if not points:
        return "0.0"
    digits = 1 if abs(points) >= 0.05 else min(max(2, -math.floor(math.log10(abs(points)))), 4)
    return f"{points:+.{digits}f}"


def count(number: int, what: str) -> str:
    """`1 seed`, `3 seeds`, `1,200 pairs`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
