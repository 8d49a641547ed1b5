"""Runs the model on the branches of all prompts, and reduces logits to what the search needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..config import RainConfig
from ..kv_cache.copy_cache import CopyCache
from ..kv_cache.forward import ForwardInput, ForwardOutput
from ..kv_cache.tree_cache import TreeCache
from .sampler import choose_tokens, likeliest_tokens, refuse_scores, sample

_LARGEST = 1e30  # as a score; its differences are finite


class ModelRunner:
    """Forward passes with logits processors and sampling.

    Args:
        cache: where keys and values are kept.
        config: for the number of likeliest tokens to keep, and the sampling of expansions.
    """

    def __init__(self, cache: TreeCache | CopyCache, config: RainConfig):
        self.cache = cache
        self.config = config
        self.num_likeliest = max(config.max_children, config.sample_top_k, config.candidates)

    def forward(
        self, inputs: Sequence[ForwardInput], processors: Mapping[int, Sequence]
    ) -> dict[ForwardInput, ForwardOutput]:
        """Outputs of the inputs, with likeliest, sampled and chosen tokens.

        Args:
            processors: the logits processors of each row (prompt).
        """
        outputs = self.cache.forward(inputs)
        scores = _process(torch.stack([outputs[each].logits for each in inputs]), inputs, processors)
        values, ids = likeliest_tokens(scores, min(self.num_likeliest, scores.shape[1]))
        counts = (values > -torch.inf).sum(-1).tolist()
        for each, largest in zip(inputs, values[:, 0].tolist(), strict=True):
            if not largest > -torch.inf:
                refuse_scores(largest, f"After {len(each.prefix)} tokens that end with {list(each.prefix[-5:])}: ")
        values = values.clamp(max=_LARGEST)  # a processor may force a token with +inf
        for number, each in enumerate(inputs):
            output = outputs[each]
            output.release_logits()
            output.top_scores = values[number, : counts[number]]
            output.top_ids = ids[number, : counts[number]]
        self._sample(inputs, outputs, scores)
        self._choose(inputs, outputs, values, ids)
        return outputs

    @staticmethod
    def _sample(inputs: Sequence[ForwardInput], outputs: dict, scores: torch.Tensor) -> None:
        """Sample from the whole vocabulary where that is asked for."""
        keys = {number: each.sample_key for number, each in enumerate(inputs) if each.sample_key is not None}
        if keys:
            tokens = sample(scores[list(keys)], list(keys.values())).tolist()
            for number, token in zip(keys, tokens, strict=True):
                outputs[inputs[number]].sampled = token

    def _choose(self, inputs: Sequence[ForwardInput], outputs: dict, values: torch.Tensor, ids: torch.Tensor) -> None:
        """Choose among the likeliest tokens where that is asked for."""
        asked = [(number, key) for number, each in enumerate(inputs) for key in each.choice_keys]
        if not asked:
            return
        numbers = [number for number, _ in asked]
        chosen = choose_tokens(values[numbers], ids[numbers], [key for _, key in asked], self.config)
        for number, choice in zip(numbers, chosen, strict=True):
            outputs[inputs[number]].choices.append(choice)


def _process(scores: torch.Tensor, inputs: Sequence[ForwardInput], processors: Mapping[int, Sequence]) -> torch.Tensor:
    """Apply each prompt's logits processors to its scores, texts of equal length together."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number, each in enumerate(inputs):
        if processors[each.row]:
            groups.setdefault((each.row, len(each.prefix)), []).append(number)
    for (row, _), members in groups.items():
        ids = torch.tensor([inputs[number].prefix for number in members], device=scores.device)
        processed = scores[members]
        for processor in processors[row]:
            processed = processor(ids, processed)
        scores[members] = processed
    return scores
