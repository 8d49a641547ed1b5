"""A short text that differs where the rewards of a server's model may differ."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from ..scoring.ensemble import RewardEnsemble
from ..scoring.model_digests import digest_of_loaded_tokenizer
from ..scoring.opening import LocalScorer

_COMPARED = 65536  # numbers of a weight; of a larger one so many at equal distances


@torch.no_grad()
def digest_of_scorer(scorer: LocalScorer) -> str:
    """Of the weights, their data type, the tokenizers and, of an ensemble, the rule.

    Of large weights a part is read, so that a model of many billion weights takes seconds. Training changes that part
    too.
    """
    digest = hashlib.blake2b(digest_size=16)
    members: Sequence[Any] = [scorer]
    if isinstance(scorer, RewardEnsemble):
        members = scorer.members
        digest.update(repr(scorer.rule).encode())
    for member in members:
        digest.update(digest_of_loaded_tokenizer(member.tokenizer).encode())
        for name, weight in sorted(member.model.state_dict().items()):
            flat = weight.detach().reshape(-1)
            part = flat[:: max(1, -(-flat.numel() // _COMPARED))].contiguous().cpu()
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(part.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
