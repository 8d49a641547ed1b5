"""Checks and loads the members of an ensemble; plain LoRA adapters of one base model share it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..utils.privacy import public_name
from ..utils.sources import load_tokenizer, loading
from ..utils.whole_models import hub_options
from .aggregation import is_ensemble
from .loading import adapter_name, is_adapter, load_adapters, shareable_base
from .member_rows import MemberRows, text_key, tokenizer_key
from .scorer import RewardScorer, loading_options
from .text_scorer import TextScorer


class AdapterRow(list):
    """A token row, and the adapter that reads it."""

    def __init__(self, ids: Sequence[int], adapter: str):
        super().__init__(ids)
        self.adapter = adapter


class AdapterScorer(RewardScorer):
    """A `RewardScorer` of one LoRA adapter among several of a PEFT model. Rows that are `AdapterRow`s are read by the
    adapter that they name, in the same forward pass.

    Args:
        model: the PEFT model. tokenizer: its own. adapter: its name there.
        **options: see `RewardScorer`.
    """

    def __init__(self, model: PreTrainedModel, tokenizer, adapter: str, **options: Any):
        super().__init__(model, tokenizer, **options)
        self.adapter = adapter

    def inputs_of(self, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
        """See `RewardScorer.inputs_of`: the adapter of each row."""
        return {"adapter_names": [getattr(row, "adapter", self.adapter) for row in rows]}


def load_members(names: Sequence[str], batch_size: int | None, model_kwargs: dict[str, Any]) -> list[RewardScorer]:
    """The scorers of folders and Hub names; plain LoRA adapters of one base model, with tokenizers that read the same
    texts as the same tokens, share that model.

    Args:
        names: of reward models and adapters. batch_size: rows per forward pass, 16 if `None`.
        model_kwargs: of `from_pretrained`.

    Raises:
        ValueError: options that belong to one repository; an ensemble among the names; what
            `RewardScorer.from_pretrained` refuses.
    """
    options = loading_options({key: value for key, value in model_kwargs.items() if value is not None})
    for option in ("revision", "subfolder"):
        if option in options:
            raise ValueError(
                f"`{option}` is {options[option]!r}, but an ensemble has several repositories. Download the members "
                "(`snapshot_download`), and name their folders."
            )
    batch_size = 16 if batch_size is None else batch_size
    groups: dict[Any, list[str]] = {}
    tokenizers: dict[str, Any] = {}
    for name in names:
        if is_ensemble(name):
            raise ValueError(f"The member {public_name(name)} is an ensemble itself. Give its members.")
        key: Any = name
        with loading(name, "reward model"):
            if is_adapter(name, options) and (base := shareable_base(name, options)) is not None:
                tokenizers[name] = load_tokenizer(name, **hub_options(options))
                key = (base, tokenizer_key(tokenizers[name]))
        groups.setdefault(key, []).append(name)
    found: dict[str, RewardScorer] = {}
    for group in groups.values():
        if len(group) == 1:
            found[group[0]] = RewardScorer.from_pretrained(
                group[0], tokenizers.get(group[0]), batch_size=batch_size, **options
            )
            continue
        model, tokenizer = load_adapters(group, tokenizers[group[0]], options)
        for number, name in enumerate(group):
            found[name] = AdapterScorer(model, tokenizer, adapter_name(number), batch_size=batch_size)
    return [found[name] for name in names]


def check_members(members: Sequence[Any]) -> None:
    """Raise for members that are not scorers, ensembles, or given twice."""
    for number, member in enumerate(members):
        if hasattr(member, "member_rewards"):
            raise ValueError(f"Member {number} is an ensemble itself. Give its members.")
        if not isinstance(member, TextScorer):
            raise TypeError(
                f"Member {number} is {type(member).__name__}, but must be a RewardScorer or a RemoteRewardScorer. "
                "Load folders with `RewardEnsemble.from_pretrained([...])`."
            )
    refuse_repeated(members)


def refuse_repeated(members: Sequence[Any]) -> None:
    """Raise `ValueError` for a scorer, or a name, that is given twice."""
    keys = [_identity(each) for each in members]
    for number, key in enumerate(keys):
        if key in keys[:number]:
            name = members[number] if isinstance(members[number], str) else type(members[number]).__name__
            raise ValueError(f"Member {number} ({name}) is the same as member {keys.index(key)}. Name each once.")


def _identity(member: Any) -> Any:
    if not isinstance(member, str):
        return id(member)
    return os.path.realpath(member) if os.path.exists(member) else member.rstrip("/")


def read_members(
    members: Sequence[TextScorer],
    rows: Sequence[Any],
    *,
    is_progress_shown: bool = False,
    positions: Sequence[Sequence[int]] | None = None,
) -> tuple[torch.Tensor, list[int], int]:
    """Rewards of rows by each member; adapters of one model are read together.

    Args:
        members: the scorers. rows: as an ensemble encodes them. positions: see `RewardScorer.score_ids`.

    Returns:
        Rewards `(members, rows)`, float32; tokens processed of each row, over all members; forward passes.
    """
    rewards, counts, passes = torch.zeros(len(members), len(rows)), [0] * len(rows), 0
    options: dict[str, Any] = {"is_progress_shown": is_progress_shown}
    for numbers in _read_together(members):
        member = members[numbers[0]]
        own = [row[numbers[0]] if isinstance(row, MemberRows) else row for row in rows]
        if len(numbers) > 1:
            adapters = [members[number].adapter for number in numbers]  # type: ignore[attr-defined]
            own = [AdapterRow(row, adapter) for adapter in adapters for row in own]
        if positions is not None:
            options["positions"] = [*positions] * len(numbers)
        rewards[numbers] = torch.tensor(member.score_ids(own, **options)).view(len(numbers), len(rows))
        passes += member.last_forward_passes
        for place, count in enumerate(member.last_token_counts):
            counts[place % len(rows)] += count
    return rewards, counts, passes


def _read_together(members: Sequence[TextScorer]) -> list[list[int]]:
    """Numbers of the members that one call reads: adapters of one model together, any other alone."""
    groups: dict[Any, list[int]] = {}
    for number, member in enumerate(members):
        key = (id(member.model), text_key(member)) if isinstance(member, AdapterScorer) else number
        groups.setdefault(key, []).append(number)
    return list(groups.values())
