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

_UNSTOPPED = 16  # tokens of a rollout asked for at a time, where the server is not told at which tokens to stop


class ServedDecoding:
    """Decodes for one prompt.

    Args:
        client: the model. rules: where the prompt's texts end. key: its random stream.
        config, sampling: how to sample.
        stop_tokens: tokens that end a rollout, for the server to stop at, if it takes so many.
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
        self.stop_strings = list(stop_strings)
        self._ends = sorted(rules.stop.eos_token_ids)
        is_stopped = not stop_tokens or client.takes_stop_tokens
        self._rollout_ends = sorted({*rules.stop.eos_token_ids, *stop_tokens}) if is_stopped else self._ends
        self._most = None if is_stopped else _UNSTOPPED
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
        scores = max(self.config.sample_top_k, self.sampling.nucleus_scores())
        common = {"logprobs": scores, "stop_token_ids": self._ends}
        length, requests = expansion.length, []
        if expansion.has_greedy:
            greedy = {**common, **self.sampling.greedy()}
            requests.append(self._complete(generated, max_tokens=length, **greedy))
        sampled = {**common, **self.sampling.expansion(self.config, self.client.is_processed)}
        if expansion.draws:
            # The server draws each of the n completions with a seed of its own, made of this one.
            seed = stream_key(self.key, "expansion", generated, expansion.draws)
            several = {"max_tokens": length, "n": len(expansion.draws), "seed": seed}
            requests.append(self._complete(generated, **sampled, **several))
        answers = await asyncio.gather(*requests)
        greedy_sets = [each for answer in answers[: expansion.has_greedy] for each in answer.completions]
        drawn_sets = [each for answer in answers[expansion.has_greedy :] for each in answer.completions]
        found = [self._cut(generated, (), each, length, is_greedy=True) for each in greedy_sets]
        found += await asyncio.gather(
            *(
                self._accept(generated, each, length, sampled, (*expansion.draws, number))
                for number, each in enumerate(drawn_sets)
            )
        )
        return [(tokens, log_prob) for tokens, log_prob, _ in found]

    async def _accept(
        self, generated: tuple[int, ...], completion: Completion, length: int, sampled: dict, stream: Sequence[int]
    ) -> tuple[tuple[int, ...], float, bool]:
        """`_cut` of a sampled completion; from the first token outside of `top_p` on it is sampled again.

        Args:
            sampled: parameters of the request. stream: numbers for its random stream.
        """
        tokens, log_prob, is_whole = self._cut(generated, (), completion, length)
        tries = 0
        while not is_whole:
            tries += 1
            seed = stream_key(self.key, "expansion", generated, stream, tries)
            left = length - len(tokens)
            answer = await self._complete((*generated, *tokens), max_tokens=left, seed=seed, **sampled)
            tokens, more, is_whole = self._cut(generated, tokens, answer.completions[0], length)
            log_prob += more
        return tokens, log_prob, True

    def _cut(
        self,
        generated: tuple[int, ...],
        tokens: tuple[int, ...],
        completion: Completion,
        length: int,
        *,
        is_greedy: bool = False,
    ) -> tuple[tuple[int, ...], float, bool]:
        """The token set of a completion, up to the end of the text, and its log probability.

        Args:
            generated: the text before. tokens: of the set, before the completion. length: tokens of a whole set.

        Returns:
            Also whether the set is whole: it is not where a token lies outside of `top_p`, before which it ends.
        """
        log_prob = 0.0
        is_processed = self.client.is_processed and not is_greedy
        is_cut_here = self.sampling.is_cut_here(self.config) and not is_greedy
        for token, scores in zip(completion.tokens, completion.scores, strict=True):
            if is_processed and not is_cut_here:  # as it was sampled
                log_prob += dict(scores)[token]
            else:
                plain = self.sampling.unwarped(scores, self.config) if is_processed else scores
                values = self.sampling.expansion_log_probs(plain, self.config)
                if is_cut_here and token not in values:
                    return tokens, log_prob, False
                log_prob += values.get(token, min(values.values()))  # rounding may put it just behind the last one
            tokens = (*tokens, token)
            if len(tokens) == length or self.rules.finish_reason((*generated, *tokens)) is not None:
                return tokens, log_prob, True
        raise self._too_short(len(tokens), length)

    async def roll_out(self, generated: tuple[int, ...]) -> tuple[int, ...]:
        """Sample up to a stop character, the end of the text or the longest rollout."""
        rules = self.rules
        left = rules.remaining(generated)
        longest = min(self.config.rollout_max_tokens or left, left)
        tokens: tuple[int, ...] = ()
        while True:
            wanted = longest - len(tokens)
            answer = await self._complete(
                (*generated, *tokens),
                max_tokens=wanted if self._most is None else min(wanted, self._most),
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
            # There is more to ask for, or the server has stopped at a string that ends no text here: a marker that a
            # special token splits.

    def _too_short(self, found: int, wanted: int) -> ServerError:
        return ServerError(
            f"The server {self.client.servers.names} was asked for {wanted} tokens, and stopped after {found} without "
            "the end of a text. Start it without `--override-generation-config` and with a `--max-model-len` that "
            "holds prompt and answer."
        )
