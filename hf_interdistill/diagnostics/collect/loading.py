"""Reward models as `diagnose` accepts them: names, loaded models, scorers."""

from __future__ import annotations

import os
import zlib
from typing import Any

import torch

from ...scoring.ensemble import RewardEnsemble
from ...scoring.opening import LocalScorer, open_scorer
from ...scoring.scorer import RewardScorer
from ...utils.devices import find_device
from ...utils.privacy import public_name


def as_scorer(model, tokenizer, batch_size: int, device=None, **load_options) -> LocalScorer:
    """The scorer of a folder, a Hub name (both loaded with `load_options`), a loaded model, or a scorer.

    What is loaded here goes to `device`, by default a GPU if there is one.

    Raises:
        ValueError: a loaded model without its tokenizer; an ensemble whose members read different tokens.
    """
    if isinstance(model, str | os.PathLike):
        model = open_scorer(str(model), tokenizer, batch_size=batch_size, **load_options)
        model.to(find_device(None) if device is None else device)
    if isinstance(model, LocalScorer):
        if isinstance(model, RewardEnsemble):
            model.reading_members("A diagnosis")
        model.batch_size = batch_size
        return model
    if tokenizer is None:
        raise ValueError("A loaded model comes without its tokenizer: pass `tokenizer=` too.")
    return RewardScorer(model, tokenizer, batch_size=batch_size)


def scorer_beside(model, scorer: LocalScorer) -> LocalScorer:
    """Another model's scorer, where the diagnosed one is: a name is loaded in its data type and on its device, a
    loaded model is read with its tokenizer."""
    if isinstance(model, str | os.PathLike):
        dtype = getattr(_models(scorer)[0], "dtype", torch.float32)
        return as_scorer(model, None, scorer.batch_size, scorer.device, dtype=dtype)
    return as_scorer(model, scorer.tokenizer, scorer.batch_size)


def fingerprint(scorer: LocalScorer) -> int:
    """A number that changes when the model is trained again, from its last parameter, the score head. For an ensemble
    it covers each member and the rule that combines them."""
    found = zlib.crc32(repr(scorer.rule).encode()) if isinstance(scorer, RewardEnsemble) else 0
    for model in _models(scorer):
        parameters = list(model.named_parameters())
        heads = [
            each for name, each in parameters if ".modules_to_save." in name
        ]  # of the adapters that share a model
        for last in [*heads[:-1], *(each for _, each in parameters[-1:])]:
            found = zlib.crc32(last.detach().float().cpu().numpy().tobytes(), found)
    return found


def _models(scorer: LocalScorer) -> list[Any]:
    """The models behind a scorer, each once."""
    members = scorer.reading_members("A diagnosis") if isinstance(scorer, RewardEnsemble) else [scorer]
    return list({id(member.model): member.model for member in members}.values())


def name_of(model, scorer: LocalScorer) -> str:
    """The name of a model for reports."""
    return public_name(model) if isinstance(model, str | os.PathLike) else scorer.__name__
