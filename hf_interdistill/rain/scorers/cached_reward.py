"""A causal reward model that reads only what is new of a text: keys and values of the rest are kept between calls.

Strategies that score after every token need it: without it each score costs the whole text.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ...scoring.formatting import is_messages
from ...scoring.scorer import RewardScorer
from ..kv_cache.forward import cache_argument
from .base import Costs, Exchange, Scorer, call_within, template_columns
from .builtin import RewardModelScorer
from .cached_forward import CachedForward
from .prefix_cache import common_prefix_length

_PROBES = ("a", "7 z")  # completions with nothing in common


class _RewardAtEachToken(nn.Module):
    """A sequence classifier whose one "logit" is given at each token, as a causal model's logits are.

    Args:
        model: a decoder with a head named `score`.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.config = model.config
        self._backbone = getattr(model, model.base_model_prefix)
        self._cache_argument = cache_argument(self._backbone)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=False):
        """Rewards `(rows, tokens, 1)` as `logits`."""
        inputs = {"attention_mask": attention_mask, "position_ids": position_ids, "use_cache": use_cache}
        if past_key_values is not None:
            inputs[self._cache_argument] = past_key_values
        states = self._backbone(input_ids, **inputs).last_hidden_state
        return _Logits(self.model.score(states))


@dataclass
class _Logits:
    logits: torch.Tensor


@dataclass
class CachedRewardScorer(RewardModelScorer):
    """`RewardModelScorer` of a causal `RewardScorer` that reads each token of a growing text once.

    Source: the "unidirectional" reward model of reward-augmented decoding (arXiv 2310.09520). Values equal those of
    `RewardModelScorer` up to rounding.

    Args:
        reward: a `RewardScorer` of a decoder with a linear head named `score`, not of an encoder or an ensemble.
        scale, center, timeout: see `RewardModelScorer`.

    Raises:
        ValueError: the reward model is none of these.

    Relations: worth it where many texts of a call start alike: `args`, `rad`, `beam`, and long answers with `rain`.
    """

    _passes: Any = field(default=None, init=False, repr=False, compare=False)
    _readable: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.reward, RewardScorer) or not self.reward.is_causal:
            raise ValueError(
                f"The reward model is {type(self.reward).__name__}, but only a `RewardScorer` of a decoder can keep "
                "what it has read. Use `RewardModelScorer`, which reads whole texts."
            )
        if not isinstance(getattr(self.reward.model, "score", None), nn.Linear):
            raise ValueError(
                f"{type(self.reward.model).__name__} has no linear head named `score`, so its rewards cannot be "
                "read token by token. Merge an adapter first, or use `RewardModelScorer`."
            )

    def bind(self, model, tokenizer) -> Scorer:
        """See `Scorer.bind`."""
        return copy.copy(self)

    def start_search(self) -> None:
        """See `Scorer.start_search`: nothing is kept from searches before, for weights may have changed."""
        self._readable = _RewardAtEachToken(self.reward.model)  # type: ignore[attr-defined]
        self._passes = CachedForward(self._readable, [], cuda_graphs=False)

    def score(self, exchanges):
        """See `Scorer.score`."""
        rewards = call_within(self.timeout, self._read, exchanges)
        return [math.tanh((reward - self.center) / self.scale) for reward in rewards]

    def _read(self, exchanges: Sequence[Exchange]) -> list[float]:
        """Rewards of texts; what it cost is kept for `costs`."""
        if self._passes is None:
            self.start_search()
        rows = self._rows(exchanges)
        with self._passes.lend(self._readable):
            logits, counts = self._passes.last_logits(
                [[row] for row in rows],
                [replace(exchange, completion="") for exchange in exchanges],
                self._opening,
                torch.tensor([0]),
            )
            passes, shared = self._passes.pop_costs()
        self._costs = Costs(counts, passes, shared)
        return logits[:, 0, 0].tolist()

    def _rows(self, exchanges: Sequence[Exchange]) -> list[list[int]]:
        """Tokens of texts, up to the one that the reward is read at: the last that is not a padding token."""
        scorer: Any = self.reward
        prompts = [exchange.prompt for exchange in exchanges]
        texts = [
            [{"role": "assistant", "content": each.completion}] if is_messages(each.prompt) else each.completion
            for each in exchanges
        ]
        rows = scorer.encode_rows(prompts, texts, **template_columns(exchanges))
        for row in rows:
            scorer.check_length(len(row))
            while len(row) > 1 and row[-1] == scorer.tokenizer.pad_token_id:
                row.pop()
        return rows

    def _opening(self, exchange: Exchange) -> list[int]:
        """The tokens that all texts of a prompt start with."""
        rows = self._rows([replace(exchange, completion=probe) for probe in _PROBES])
        return rows[0][: common_prefix_length(rows)]
