"""Runs a reward model on all responses of a batch, of which `RewardTrainer` sees those of pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from .prompt_sharing.packing import PackedPairs
from .prompt_sharing.sharing import PromptSharing


@dataclass
class ResponseRows:
    """The rows of a batch: pairs, or more responses to each prompt with their ranks.

    Args:
        input_ids, attention_mask: `(responses * pairs, length)`, chosen rows, rejected rows, then others. Rows without
            a token are responses that a prompt does not have.
        ranks: `(pairs, responses)`, NaN for these; `None` for a batch of pairs.
        attribute_scores: `(2 * pairs, attributes)` of the data, if they are trained on.

    `logits` are the rewards `(pairs, responses)` of the last run of `model`, for ranks; `last_token_index`
    `(pairs, responses)` is where packed rows have their rewards.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    ranks: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_token_index: torch.Tensor | None = None
    attribute_scores: torch.Tensor | None = None

    @classmethod
    def take(cls, inputs: dict[str, torch.Tensor]) -> ResponseRows:
        """Take what is not of pairs out of a batch."""
        pairs = inputs["input_ids"], inputs["attention_mask"]
        if "ranks" not in inputs:
            return cls(*pairs, attribute_scores=inputs.pop("attribute_scores", None))
        others = inputs.pop("other_input_ids"), inputs.pop("other_attention_mask")
        ids, mask = (torch.cat([pair, other]) for pair, other in zip(pairs, others, strict=True))
        return cls(ids, mask, inputs.pop("ranks"))

    @property
    def responses(self) -> int:
        return 2 if self.ranks is None else self.ranks.shape[1]

    @property
    def num_other_tokens(self) -> torch.Tensor:
        """Tokens of the responses that are in no pair."""
        return self.attention_mask[2 * len(self.attention_mask) // self.responses :].sum()

    def pack(self, sharing: PromptSharing) -> PackedPairs | None:
        """See `PromptSharing.pack`."""
        packed = sharing.pack(self.input_ids, self.attention_mask, self.responses)
        self.last_token_index = None if packed is None else packed.last_token_index
        return packed

    def model(self, model: nn.Module, sharing: PromptSharing, packed: PackedPairs | None) -> Callable:
        """What `RewardTrainer` calls as its model: it runs on all rows and returns the rewards of the pairs."""
        run: Callable = model if packed is None else sharing.packed_model(model, packed)
        return run if self.ranks is None else lambda **inputs: self._run_all(run, packed is None, **inputs)

    def _run_all(self, run: Callable, is_separate: bool, use_cache: bool, **inputs: Any):
        if is_separate:
            rows = self.attention_mask.any(1).nonzero()[:, 0]
            some = run(
                input_ids=self.input_ids[rows], attention_mask=self.attention_mask[rows], use_cache=use_cache
            ).logits
            logits = some.new_zeros(len(self.input_ids), 1).index_copy(0, rows, some)
        else:
            logits = run(use_cache=use_cache, **inputs).logits
        assert self.ranks is not None
        self.logits = logits.view(self.responses, -1).T
        return SequenceClassifierOutputWithPast(logits=logits[: 2 * len(self.ranks)])
