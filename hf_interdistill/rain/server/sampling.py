"""How a server samples, and what is done to the log probabilities that it answers with.

A server samples whole token sets by itself. Of one-token expansions and of the greedy token set it gives the log
probabilities before temperature, top-k and top-p, which are applied here, in the order of transformers.

In process `top_p` is cut among `top_k` tokens, and a token set is sampled from the `sample_top_k` likeliest that are
left. A server has one top-k, before its `top_p`. Where the two differ it samples without `top_p`, and tokens outside
of it are drawn again (`is_cut_here`): what is accepted has the distribution of a search in process.
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
        inherited: names of those that come from the model's generation config.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    inherited: frozenset[str] = frozenset()

    def rollout(self) -> dict[str, Any]:
        """Parameters of a request that rolls out."""
        return self._parameters(self.temperature, self.top_k, self.top_p)

    def expansion(self, config: RainConfig, is_processed: bool = False) -> dict[str, Any]:
        """Parameters of a request for sampled token sets; `is_processed` as in `check_processed`."""
        top_k, top_p = self._expansion_top_k(config), self.top_p
        if self.is_cut_here(config):
            # Processed log probabilities must be of all tokens among which `top_p` is cut.
            top_k, top_p = self.top_k if is_processed else top_k, 1.0
        return self._parameters(self.temperature * config.expansion_temperature, top_k, top_p)

    def is_cut_here(self, config: RainConfig) -> bool:
        """Whether token sets are sampled without `top_p`, so that tokens outside of it must be drawn again."""
        is_the_servers = config.expansion_temperature == 1 and (self.top_k or math.inf) <= config.sample_top_k
        return self.top_p < 1 and not is_the_servers

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

    def _expansion_top_k(self, config: RainConfig) -> int | None:
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

    def expansion_log_probs(self, scores: TokenScores, config: RainConfig) -> dict[int, float]:
        """Log probabilities of the tokens that token sets are sampled from, likeliest first.

        Args:
            scores: as in `warped`.
        """
        kept = self.warped(scores)[: config.sample_top_k]
        values = [(each, score / config.expansion_temperature) for each, score in kept]
        largest = values[0][1]
        total = largest + math.log(sum(math.exp(score - largest) for _, score in values))
        return {each: score - total for each, score in values}

    def unwarped(self, scores: TokenScores, config: RainConfig) -> list[tuple[int, float]]:
        """Processed log probabilities of `expansion` as those before its temperature, up to a constant."""
        heat = self.temperature * config.expansion_temperature
        return [(token, score * heat) for token, score in scores]

    def num_scores(self, config: RainConfig, has_encoder: bool) -> int:
        """Log probabilities per token that a server must answer with."""
        return max(self._scores_without_nucleus(config, has_encoder), self.nucleus_scores())

    @staticmethod
    def _scores_without_nucleus(config: RainConfig, has_encoder: bool) -> int:
        widest = config.max_children if has_encoder else config.candidates
        return max(config.candidates, config.sample_top_k, widest)

    def nucleus_scores(self) -> int:
        """Log probabilities per token by which `top_p` is cut."""
        return self.top_k if self.top_p < 1 and self.top_k is not None else 1

    def reason_for_scores(self, config: RainConfig, has_encoder: bool) -> str:
        """Why so many are needed, for a message, where it is for `top_p`; otherwise empty."""
        others = self._scores_without_nucleus(config, has_encoder)
        if self.nucleus_scores() <= others:
            return ""
        return (
            f"`top_p` is {self.top_p:g}{self._origin('top_p')} among the `top_k` ({self.top_k}) likeliest tokens. "
            + (f"With `top_p=1.0`, or `top_k` of at most {others}, {others} log probabilities are enough. ")
        )

    def _origin(self, name: str) -> str:
        return ", from the model's generation config," if name in self.inherited else ""

    def check_processed(self, config: RainConfig, is_processed: bool) -> None:
        """Raise `ValueError` for options that candidates would not have.

        Args:
            config: the search. is_processed: whether the server's log probabilities are those after penalties,
                temperature, top-k and top-p.
        """
        if self.repetition_penalty != 1 and not is_processed:
            raise ValueError(
                f"`repetition_penalty` is {self.repetition_penalty:g}{self._origin('repetition_penalty') or ','} but "
                "the server's log probabilities are those before penalties. Start it with `--logprobs-mode "
                "processed_logprobs`, or pass `repetition_penalty=1.0`."
            )
        if is_processed and self.top_k is None and self.is_cut_here(config) and config.expansion_temperature != 1:
            raise ValueError(
                f"`top_p` is {self.top_p:g}{self._origin('top_p')} with an `expansion_temperature` of "
                f"{config.expansion_temperature:g} and no `top_k`: that needs the probabilities of the whole "
                "vocabulary, which a server with `--logprobs-mode processed_logprobs` does not send. Pass `top_k`, or "
                "`top_p=1.0`."
            )

    def check_nucleus(self) -> None:
        """Raise `ValueError` for a `top_p` that cannot be cut by the log probabilities that a server sends."""
        if self.top_p < 1 and self.top_k is None and self.temperature != 1:
            raise ValueError(
                f"`top_p` is {self.top_p:g}{self._origin('top_p')} with a temperature of {self.temperature:g} and no "
                "`top_k`: that needs the probabilities of the whole vocabulary, which a server does not send. Pass "
                "`top_k`, or `top_p=1.0`."
            )
