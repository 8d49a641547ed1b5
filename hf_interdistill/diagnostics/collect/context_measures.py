"""The measures that ask whether the prompt is read, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .early_context import score_early_context
from .rereading import CannotMeasureError, Rereading
from .swapped_prompts import score_swapped_prompts
from .turn_removal import score_turn_removal

_MEASURES: dict[str, Callable[[Rereading], Any]] = {
    "swapped_prompt": score_swapped_prompts,
    "early_context": score_early_context,
    "turn_removal": score_turn_removal,
}


def measure_context(reading: Rereading) -> tuple[dict[str, Any], dict[str, str]]:
    """The measures of `config.context_measures` that the data allow, and why others are missing."""
    found, problems = {}, {}
    for name in reading.config.context_measures:
        try:
            if isinstance(reading.pairs.data, Iterator):
                raise CannotMeasureError(
                    f"The data are {type(reading.pairs.data).__name__}, which can be read only once, but are needed "
                    "again. Pass a list, a file or a Hub name."
                )
            found[name] = _MEASURES[name](reading)
        except CannotMeasureError as problem:
            problems[name] = str(problem)
    return found, problems
