"""How a server samples, and what is done to the log probabilities that it answers with.

A server samples whole token sets by itself. Of one-token expansions and of the greedy token set it gives the log
probabilities before temperature, top-k and top-p, which are applied here, in the order of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..config import RainConfig

TokenScores = Sequence[tuple[int, float]]  # token ids and log probabilities, likeliest first


@dataclass(frozen=True)
class ServedSampling:
    """The generation options that shape candidates and rollouts.

    Args:
        temperature: of rollouts and, times `expansion_temperature`, of candidates.
        top_k: number of likeliest tokens to sample from; `None` for all.
        top_p: share of the probability to sample from.
        repetition_penalty: as in transformers, on tokens of prompt and text.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def rollout(self) -> dict[str, Any]:
        """Parameters of a request that rolls out."""
        return self._parameters(self.temperature, self.top_k, self.top_p)

    def expansion(self, config: RainConfig) -> dict[str, Any]:
        """Parameters of a request for sampled token sets."""
        return self._parameters(
            self.temperature * config.expansion_temperature, self._expansion_top_k(config), self.top_p
        )

    def greedy(self) -> dict[str, Any]:
        """Parameters of a request for the likeliest tokens: the server applies penalties, this class the others."""
        return self._parameters(0.0, None, 1.0)

    def _parameters(self, temperature: float, top_k: int | None, top_p: float) -> dict[str, Any]:
        return {
            "temperature": temperature,
            "top_k": 0 if top_k is None else top_k,
            "top_p": top_p,
            "repetition_penalty": self.repetition_penalty,
        }

    def _expansion_top_k(self, config: RainConfig) -> int:
        return config.sample_top_k if self.top_k is None else min(config.sample_top_k, self.top_k)

    def warped(self, scores: TokenScores) -> list[tuple[int, float]]:
        """Log probabilities, up to a constant, after temperature, top-k and top-p; tokens that are left.

        Args:
            scores: before them, normalized over the vocabulary; at least `num_scores` of the likeliest.
        """
        kept = [(token, score / self.temperature) for token, score in scores[: self.top_k]]
        if self.top_p < 1:
            weights = [math.exp(score) for _, score in kept]
            total = 1.0 if self.top_k is None else sum(weights)  # without top-k the temperature is 1
            before = 0.0
            for number, weight in enumerate(weights):
                if number and before >= self.top_p * total:
                    return kept[:number]
                before += weight
        return kept

    def expansion_log_prob(self, token: int, scores: TokenScores, config: RainConfig) -> float:
        """Log probability of a token among those that token sets are sampled from.

        Args:
            token: the token that was sampled, or is the likeliest. scores: as in `warped`.
        """
        kept = self.warped(scores)[: config.sample_top_k]
        values = [(each, score / config.expansion_temperature) for each, score in kept]
        largest = values[0][1]
        total = largest + math.log(sum(math.exp(score - largest) for _, score in values))
        return dict(values).get(token, values[-1][1]) - total  # rounding may put a token just behind the last one

    def num_scores(self, config: RainConfig, has_encoder: bool) -> int:
        """Log probabilities per token that a server must answer with."""
        widest = config.max_children if has_encoder else config.candidates
        nucleus = self.top_k if self.top_p < 1 and self.top_k is not None else 1
        return max(config.candidates, config.sample_top_k, widest, nucleus)

    def check_penalties(self, is_processed: bool) -> None:
        """Raise `ValueError` for penalties that candidates would not have.

        Args:
            is_processed: whether the server's log probabilities are those after penalties.
        """
        if self.repetition_penalty != 1 and not is_processed:
            raise ValueError(
                f"`repetition_penalty` is {self.repetition_penalty}, but the server's log probabilities are those "
                "before penalties. Start it with `--logprobs-mode processed_logprobs`, or leave the penalty out."
            )

    def check_nucleus(self, config: RainConfig) -> None:
        """Raise `ValueError` for a `top_p` that a server cannot sample by as a search in process does.

        Args:
            config: the search.
        """
        if self.top_p >= 1:
            return
        if self.top_k is None and self.temperature != 1:
            raise ValueError(
                f"`top_p` is {self.top_p} with a temperature of {self.temperature} and no `top_k`: that needs the "
                "probabilities of the whole vocabulary, which a server does not send. Set `top_k`, or leave `top_p` "
                "out."
            )
        is_one_nucleus = config.expansion_temperature == 1 and (self.top_k or math.inf) <= config.sample_top_k
        if config.samples_token_sets and not is_one_nucleus:
            raise ValueError(
                f"`top_p` is {self.top_p}, but a server samples token sets with one temperature and one top-k. Set "
                f"`top_k` to at most `sample_top_k` ({config.sample_top_k}) and `expansion_temperature` to 1, or "
                "leave `top_p` out."
            )
