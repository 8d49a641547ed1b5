"""Schedules decoding: expansions and rollouts of all prompts advance together, one token in each forward pass.

A decode job is one rollout or one expansion from a node. Its result depends on the node and the seed alone, so it may
be decoded before the search asks for it: speculative jobs share passes that are made anyway.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch

from ...utils.random_streams import stream_key
from ..config import RainConfig
from ..kv_cache.copy_cache import CopyCache
from ..kv_cache.forward import CacheHandle, ForwardInput, ForwardOutput
from ..kv_cache.tree_cache import TreeCache
from ..search.requests import Decode, Expansion
from ..search.search import weight_candidates
from ..search.tree import Candidate, Node
from .request_state import JobKey, NodeState, RequestState
from .sampler import choose_tokens
from .steps import Outputs, RunningSteps, Steps


class DecodeJob(RunningSteps):
    """A rollout (its result: tokens) or an expansion (candidates).

    Args:
        state: the prompt. key: what to decode. config: the constants. cache: where keys and values are kept.

    Attributes:
        inputs: as in `RunningSteps`; empty while another job runs the node.
    """

    def __init__(self, state: RequestState, key: JobKey, config: RainConfig, cache: TreeCache | CopyCache):
        self.generated, self.expansion = key
        self.state, self.config, self.cache = state, config, cache
        self.node: NodeState = state.nodes[self.generated]
        super().__init__(self._run())

    def _run(self) -> Steps:
        output: ForwardOutput = yield from self._run_node()
        if self.expansion is None:
            return (yield from self._roll_out(output))
        if self.expansion.length > 1 or self.expansion.draws:
            return (yield from self._sample(self.expansion, output))
        return self._likeliest(self.expansion, output)

    def _run_node(self) -> Steps:
        """Run the model on the node's own tokens, unless another job has done so or is about to."""
        node = self.node
        while node.output is None:
            if node.is_running:
                yield []
                continue
            node.is_running = True
            try:
                needed = self._input(node.parent, node.pending, (), is_sampled=True)
                outputs = yield [needed]
                node.output = outputs[needed]
            finally:
                node.is_running = False
        return node.output

    def _input(
        self, parent: CacheHandle | None, tokens, after: tuple[int, ...], is_sampled: bool = False, choice_keys=()
    ) -> ForwardInput:
        """An input whose text ends with the tokens `after` the node."""
        key = stream_key(self.state.key, "rollout", self.generated, len(after)) if is_sampled else None
        prefix = (*self.state.rules.prompt_ids, *self.generated, *after)
        return ForwardInput(self.state.row, parent, tuple(tokens), prefix, key, choice_keys)

    def _roll_out(self, first: ForwardOutput) -> Steps:
        """Sample up to a stop character, the end of the text or the longest rollout."""
        rules, output = self.state.rules, first
        tokens: tuple[int, ...] = ()
        longest = self.config.rollout_max_tokens or rules.remaining(self.generated)
        while True:
            tokens = (*tokens, output.sampled)
            text = (*self.generated, *tokens)
            if len(tokens) >= longest or rules.stops_rollout(tokens) or rules.finish_reason(text):
                break
            needed = self._input(output.handle, tokens[-1:], tokens, is_sampled=True)
            outputs = yield [needed]
            output = outputs[needed]
        if output is not first:
            self.cache.truncate(output.handle, keep=first.handle)
        return tokens

    def _likeliest(self, expansion: Expansion, output: ForwardOutput) -> list[Candidate]:
        """The likeliest tokens, one per candidate."""
        scores = output.top_scores / self.config.expansion_temperature
        weights = torch.exp(scores - scores[0])[: expansion.count].tolist()
        tokens = output.top_ids[: expansion.count].tolist()
        candidates = [self._candidate((token,), weight) for token, weight in zip(tokens, weights, strict=True)]
        self.state.register_candidates(self.generated, candidates, {(): output})
        return candidates

    def _candidate(self, tokens: tuple[int, ...], weight: float) -> Candidate:
        is_terminal = self.state.rules.finish_reason((*self.generated, *tokens)) is not None
        return Candidate(tokens, weight, is_terminal)

    def _sample(self, expansion: Expansion, first: ForwardOutput) -> Steps:
        """The greedy token set and the sampled ones, in step; equal prefixes are run once."""
        rules = self.state.rules
        token_sets: list[tuple[int, ...]] = [()] * (expansion.has_greedy + len(expansion.draws))
        log_probs = [0.0] * len(token_sets)
        live = list(range(len(token_sets)))
        by_tokens: dict[tuple[int, ...], ForwardOutput] = {(): first}
        keys = self._choice_keys(live, expansion, 0)
        top = first.top_scores.expand(len(live), -1), first.top_ids.expand(len(live), -1)
        choices = choose_tokens(*top, keys, self.config)
        for step in range(1, expansion.length + 1):
            for i, (token, log_prob) in zip(live, choices, strict=True):
                token_sets[i], log_probs[i] = (*token_sets[i], token), log_probs[i] + log_prob
            wanted: dict[tuple[int, ...], list[int]] = {}
            for i in live:
                if rules.finish_reason((*self.generated, *token_sets[i])) is None:
                    wanted.setdefault(token_sets[i], []).append(i)
            if step == expansion.length or not wanted:
                break
            needed = {
                tokens: self._input(
                    by_tokens[tokens[:-1]].handle,
                    tokens[-1:],
                    tokens,
                    choice_keys=self._choice_keys(members, expansion, step),
                )
                for tokens, members in wanted.items()
            }
            outputs = yield list(needed.values())
            by_tokens.update({tokens: outputs[each] for tokens, each in needed.items()})
            choices = [choice for each in needed.values() for choice in outputs[each].choices]
            live = [i for members in wanted.values() for i in members]
        weights = torch.tensor(log_probs, dtype=torch.float64).exp().tolist()
        sampled = [self._candidate(tokens, weight) for tokens, weight in zip(token_sets, weights, strict=True)]
        greedy = int(expansion.has_greedy)
        candidates = weight_candidates(tuple(sampled[:greedy]), sampled[greedy:])
        self.state.register_candidates(self.generated, candidates, by_tokens)
        return candidates

    def _choice_keys(self, numbers: Sequence[int], expansion: Expansion, step: int) -> list[int | None]:
        """Random streams of the tokens that token sets get at a step; `None` for the greedy one."""
        draws = [None if i < expansion.has_greedy else expansion.draws[i - expansion.has_greedy] for i in numbers]
        return [
            None if draw is None else stream_key(self.state.key, "expansion", self.generated, step, draw)
            for draw in draws
        ]


class RequestScheduler:
    """Serves one `Decode` request of a prompt, and advances its speculative jobs in the same passes.

    Args:
        state: the prompt. request: what is asked for. config: the constants. cache: where keys and values are kept.
    """

    def __init__(self, state: RequestState, request: Decode, config: RainConfig, cache: TreeCache | CopyCache):
        self.state = state
        self.request = request
        self.config = config
        self.cache = cache

    def run(self) -> Generator[list[ForwardInput], Outputs, list]:
        """Yields inputs of forward passes; returns the result of each task."""
        jobs = self.state.jobs
        keys = [self._key(*task) for task in self.request.tasks]
        wanted = [self._job(key) for key in keys]
        if not all(job.is_finished for job in wanted):
            self._speculate(wanted)
        while not all(job.is_finished for job in wanted):
            running = [job for job in jobs.values() if job.inputs]
            waiting = [job for job in jobs.values() if not job.is_finished and not job.inputs]
            outputs = yield [each for job in running for each in job.inputs]
            for job in (*running, *waiting):  # those that wait find their node run
                job.advance(outputs)
            if any(job.is_finished and job not in wanted for job in running):
                self._speculate(wanted)
        return [jobs.pop(key).result for key in keys]

    @staticmethod
    def _key(node: Node, expansion: Expansion | None) -> JobKey:
        return node.tokens_from_origin(), expansion

    def _job(self, key: JobKey) -> DecodeJob:
        """The job with this key, started if it is not there."""
        if key not in self.state.jobs:
            self.state.jobs[key] = DecodeJob(self.state, key, self.config, self.cache)
        return self.state.jobs[key]

    def _known(self, node: Node, expansion: Expansion) -> list[Candidate] | None:
        """The candidates of a speculative expansion that is finished."""
        job = self.state.jobs.get(self._key(node, expansion))
        return job.result if job is not None and job.is_finished else None

    def _speculate(self, wanted: list[DecodeJob]) -> None:
        """Start jobs that the search will probably want next, as far as there is room."""
        if self.request.speculate is None or not self.cache.supports_mixed_lengths:
            return
        most = self.config.num_speculative or 0
        running = sum(not job.is_finished and job not in wanted for job in self.state.jobs.values())
        if running >= most:
            return
        for node, expansion in self.request.speculate(self._known):
            key = self._key(node, expansion)
            if key not in self.state.jobs and running < most:
                running += not self._job(key).is_finished
