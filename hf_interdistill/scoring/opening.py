"""Opens the reward model of a job by folder or Hub name: a single model or an ensemble."""

from __future__ import annotations

from typing import Any

from ..utils.model_config import require_model
from .aggregation import EnsembleFile, is_address, is_ensemble
from .ensemble import RewardEnsemble
from .scorer import RewardScorer

LocalScorer = RewardScorer | RewardEnsemble


def open_scorer(name: str, tokenizer=None, **options: Any) -> LocalScorer:
    """`RewardScorer.from_pretrained`, or `RewardEnsemble.from_pretrained` for the folder of an ensemble.

    Args:
        name: folder or Hub name. tokenizer: of a single model, by default its own.
        **options: `batch_size`, `max_length`, and those of `from_pretrained`.

    Raises:
        ValueError: a tokenizer for an ensemble, each member of which has its own; what either of the two refuses.
    """
    if not is_ensemble(name):
        return RewardScorer.from_pretrained(name, tokenizer, **options)
    if tokenizer is not None:
        raise ValueError(
            f"{name} is an ensemble, and each of its members has its own tokenizer. Leave `tokenizer` out."
        )
    return RewardEnsemble.from_pretrained(name, **options)


def require_reward_model(name: str, kind: str = "reward model", revision: str | None = None) -> None:
    """Check, before long work, that a name is that of a reward model, or of an ensemble whose members are all there.

    Args:
        name: folder or Hub name. kind: what it should be, for the message. revision: of a single one.

    Raises:
        ValueError, SourceNotFoundError: it is not; see `EnsembleFile.read` and `require_model`.
    """
    if not is_ensemble(name):
        require_model(kind, name, revision=revision)
        return
    for member in EnsembleFile.read(name).members:
        if not is_address(member):
            require_model(f"member of {name}", member)
