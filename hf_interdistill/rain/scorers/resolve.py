"""Turns what users pass into a scorer."""

from __future__ import annotations

import inspect

from ..config import RainConfig
from .base import Scorer
from .builtin import FunctionScorer, RewardModelScorer
from .self_evaluation import SelfEvaluationScorer


def as_scorer(scorer, judge: str = "harmlessness", vote: str = "hard", **self_settings) -> Scorer:
    """Turns what users pass into a scorer.

    Args:
        scorer: a `Scorer`; `"self"`; a function of one argument (texts); or a callable of two (prompts, completions),
            which is treated as a reward model with scale 1.
        judge: judge prompt of `"self"`.
        vote: vote of `"self"`.
        **self_settings: further settings of `"self"` (`orders`, `calibrate`, `cuda_graphs`), see
            `SelfEvaluationScorer`.

    Raises:
        ValueError: a string other than `"self"`. TypeError: anything that is not a scorer and cannot be called.
    """
    if isinstance(scorer, Scorer) or getattr(type(scorer), "is_rain_scorer", False):
        return scorer
    if isinstance(scorer, str):
        if scorer != "self":
            raise ValueError(
                f"The scorer is {scorer!r}, but the only scorer with a name is 'self'. Pass a Scorer, a RewardScorer, "
                "or a function of a list of texts."
            )
        return SelfEvaluationScorer(judge, vote=vote, **self_settings)
    if not callable(scorer):
        raise TypeError(
            f"The scorer is a {type(scorer).__name__}, but must be 'self', a Scorer, a RewardScorer, or a function of "
            "a list of texts."
        )
    return RewardModelScorer(scorer) if _required_arguments(scorer) == 2 else FunctionScorer(scorer)


def scorer_from_config(scorer, config: RainConfig) -> Scorer:
    """`as_scorer` with the judge settings of a config."""
    return as_scorer(
        scorer,
        config.judge,
        config.judge_vote,
        orders=config.judge_orders,
        calibrate=config.judge_calibration,
        cuda_graphs=config.cuda_graphs,
    )


def _required_arguments(function) -> int:
    """Number of positional arguments without a default; 1 for built-in callables that have no signature."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in positional and each.default is each.empty for each in parameters)
