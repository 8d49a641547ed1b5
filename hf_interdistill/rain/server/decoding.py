"""Expansions and rollouts of one prompt, by requests to a server."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence

from ...utils.random_streams import stream_key
from ...utils.servers import ServerError
from ..config import RainConfig
from ..engine.stopping import StopChecker
from ..search.requests import DecodeTask, Expansion
from ..search.search import weight_candidates
from ..search.tree import Candidate
from .client import Answer, Completion, CompletionsClient
from .sampling import ServedSampling

_MOST_STOP_STRINGS = 4  # in a request


class ServedDecoding:
    """Decodes for one prompt.

    Args:
        client: the model. rules: where the prompt's texts end. key: its random stream.
        config, sampling: how to sample.
        stop_tokens: tokens that end a rollout, for the server to stop at.
        stop_strings: strings that end a text, likewise.

    Attributes:
        costs: of all requests so far, see `Answer`.
    """

    def __init__(
        self,
        client: CompletionsClient,
        rules: StopChecker,
        key: int,
        config: RainConfig,
        sampling: ServedSampling,
        *,
        stop_tokens: Sequence[int] = (),
        stop_strings: Sequence[str] = (),
    ):
        self.client, self.rules, self.key, self.config, self.sampling = client, rules, key, config, sampling
        self.stop_strings = list(stop_strings)[:_MOST_STOP_STRINGS]
        self._ends = sorted(rules.stop.eos_token_ids)
        self._rollout_ends = sorted({*rules.stop.eos_token_ids, *stop_tokens})
        self.costs: Counter = Counter()

    async def run(self, task: DecodeTask) -> tuple[int, ...] | list[Candidate]:
        """The tokens of a rollout, or the candidates of an expansion."""
        node, expansion = task
        generated = node.tokens_from_origin()
        if expansion is None:
            return await self.roll_out(generated)
        if expansion.length == 1 and not expansion.draws:
            return await self.likeliest(generated, expansion.count)
        token_sets = await self.token_sets(generated, expansion)
        candidates = [self._candidate(generated, tokens, math.exp(log_prob)) for tokens, log_prob in token_sets]
        greedy = int(expansion.has_greedy)
        return weight_candidates(tuple(candidates[:greedy]), candidates[greedy:])

    def _candidate(self, generated: tuple[int, ...], tokens: tuple[int, ...], weight: float) -> Candidate:
        return Candidate(tokens, weight, self.rules.finish_reason((*generated, *tokens)) is not None)

    async def _complete(self, generated: Sequence[int], **parameters) -> Answer:
        answer = await self.client.complete([*self.rules.prompt_ids, *generated], **parameters)
        self.costs.update(answer.costs)
        return answer

    async def likeliest(self, generated: tuple[int, ...], count: int) -> list[Candidate]:
        """The likeliest next tokens, one per candidate."""
        wanted = max(count, self.sampling.top_k or 0) if self.sampling.top_p < 1 else count
        answer = await self._complete(generated, max_tokens=1, logprobs=wanted, **self.sampling.greedy())
        scores = self.sampling.warped(answer.completions[0].scores[0])[:count]
        temperature, best = self.config.expansion_temperature, scores[0][1]
        return [
            self._candidate(generated, (token,), math.exp((score - best) / temperature)) for token, score in scores
        ]

    async def token_sets(
        self, generated: tuple[int, ...], expansion: Expansion
    ) -> list[tuple[tuple[int, ...], float]]:
        """The greedy token set and the sampled ones, duplicates included, each with its log probability."""
        common = {"max_tokens": expansion.length, "logprobs": self.config.sample_top_k, "stop_token_ids": self._ends}
        requests = []
        if expansion.has_greedy:
            requests.append(self._complete(generated, **common, **self.sampling.greedy()))
        if expansion.draws:
            # The server draws each of the n completions with a seed of its own, made of this one.
            seed = stream_key(self.key, "expansion", generated, expansion.draws)
            sampled = {**common, **self.sampling.expansion(self.config), "n": len(expansion.draws), "seed": seed}
            requests.append(self._complete(generated, **sampled))
        answers = await asyncio.gather(*requests)
        found = []
        for number, answer in enumerate(answers):
            is_greedy = expansion.has_greedy and number == 0
            found += [self._cut(generated, each, expansion.length, is_greedy) for each in answer.completions]
        return found

    def _cut(
        self, generated: tuple[int, ...], completion: Completion, length: int, is_greedy: bool
    ) -> tuple[tuple[int, ...], float]:
        """The token set of a completion, up to the end of the text, and its log probability."""
        tokens: tuple[int, ...] = ()
        log_prob = 0.0
        for token, scores in zip(completion.tokens, completion.scores, strict=True):
            tokens = (*tokens, token)
            if self.client.is_processed and not is_greedy:  # as it was sampled
                log_prob += dict(scores)[token]
            else:
                log_prob += self.sampling.expansion_log_prob(token, scores, self.config)
            if len(tokens) == length or self.rules.finish_reason((*generated, *tokens)) is not None:
                return tokens, log_prob
        raise self._too_short(len(tokens), length)

    async def roll_out(self, generated: tuple[int, ...]) -> tuple[int, ...]:
        """Sample up to a stop character, the end of the text or the longest rollout."""
        rules = self.rules
        left = rules.remaining(generated)
        longest = min(self.config.rollout_max_tokens or left, left)
        tokens: tuple[int, ...] = ()
        while True:
            answer = await self._complete(
                (*generated, *tokens),
                max_tokens=longest - len(tokens),
                seed=stream_key(self.key, "rollout", generated, len(tokens)),
                stop_token_ids=self._rollout_ends,
                stop=self.stop_strings,
                **self.sampling.rollout(),
            )
            for token in answer.completions[0].tokens:
                tokens = (*tokens, token)
                is_over = rules.stops_rollout(tokens) or rules.finish_reason((*generated, *tokens)) is not None
                if is_over or len(tokens) >= longest:
                    return tokens
            # The server has stopped at a string that ends no text here: a marker that a special token splits.

    def _too_short(self, found: int, wanted: int) -> ServerError:
        return ServerError(
            f"The server {self.client.servers.names} was asked for {wanted} tokens, and stopped after {found} without "
            "the end of a text. Start it without `--override-generation-config` and with a `--max-model-len` that "
            "holds prompt and answer."
        )
