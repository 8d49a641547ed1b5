"""Reward models as `diagnose` is given them: names, loaded models, scorers."""

from __future__ import annotations

import os
import zlib

import torch

from ...scoring.scorer import RewardScorer
from ...utils.privacy import public_name


def as_scorer(model, tokenizer, batch_size: int, **load_options) -> RewardScorer:
    """The scorer of a folder, a Hub name (both loaded with `load_options`), a loaded model, or a scorer.

    Raises:
        ValueError: a loaded model without its tokenizer.
    """
    if isinstance(model, RewardScorer):
        model.batch_size = batch_size
        return model
    if isinstance(model, str | os.PathLike):
        return RewardScorer.from_pretrained(str(model), tokenizer, batch_size=batch_size, **load_options)
    if tokenizer is None:
        raise ValueError("A loaded model comes without its tokenizer: pass `tokenizer=` too.")
    return RewardScorer(model, tokenizer, batch_size=batch_size)


def scorer_beside(model, scorer: RewardScorer) -> RewardScorer:
    """Another model's scorer, where the diagnosed one is: a name is loaded in its data type and on its device, a
    loaded model is read with its tokenizer."""
    if isinstance(model, str | os.PathLike):
        dtype = getattr(scorer.model, "dtype", torch.float32)
        return as_scorer(model, None, scorer.batch_size, dtype=dtype).to(scorer.device)
    return as_scorer(model, scorer.tokenizer, scorer.batch_size)


def fingerprint(scorer: RewardScorer) -> int:
    """A number that changes when the model is trained again: of its last parameter, the score head."""
    last = None
    for last in scorer.model.parameters():  # noqa: B007
        pass
    return 0 if last is None else zlib.crc32(last.detach().float().cpu().numpy().tobytes())


def name_of(model, scorer: RewardScorer) -> str:
    """The name of a model for reports."""
    return public_name(model) if isinstance(model, str | os.PathLike) else scorer.__name__
