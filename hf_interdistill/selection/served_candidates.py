"""Samples completions of a causal language model on a vLLM server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from ..rain.api.served_generation import ServedGeneration, saved_generation_config
from ..rain.server.client import CompletionsClient
from ..scoring.formatting import Text
from ..scoring.prompts import tokenize_prompt
from ..utils.async_calls import run
from ..utils.random_streams import stream_key
from ..utils.server_pool import ModelServers
from .candidates import Candidate, finish_candidate

Request = tuple[str | int, Text, int]


class ServedSampler:
    """Samples completions on a server; called as a `CandidateSampler` is.

    The candidates of a prompt are the completions of one request. Its seed depends on (`seed`, the prompt's id), and
    the server draws completion `i` with a seed of its own, so that candidate `i` is the same for any n.

    Args:
        servers: where the model is. model: the name that it is served by. tokenizer: its own.
        generation: as for `CandidateSampler`; only what a server can be sent (see `ServedGeneration`).

    Raises:
        ValueError: an option that cannot be sent, no limit of the length, or another model or vocabulary.
        ServerError: the server cannot be reached, or fails.
    """

    def __init__(self, servers: ModelServers, model: str, tokenizer, generation: dict[str, Any], *, seed: int):
        own = saved_generation_config(tokenizer)
        self.options = ServedGeneration.resolve({**generation, "do_sample": True}, own, tokenizer)
        if self.options.max_new_tokens is None and self.options.max_length is None:
            raise ValueError(
                "`generation` has neither `max_new_tokens` nor `max_length`, and neither has the model. Say how long "
                "texts may be."
            )
        self.client, self.tokenizer, self.seed = CompletionsClient(servers, model), tokenizer, seed
        run(self._check())

    async def _check(self) -> None:
        async with self.client.servers.connected():
            await self.client.check(self.tokenizer, 1)

    def check(self, prompt: Text, template_kwargs: Mapping[str, Any] | None = None) -> None:
        """Raise `ValueError` for a prompt that leaves no room for a completion in the model's context."""
        length = tokenize_prompt(self.tokenizer, prompt, template_kwargs).shape[1]
        limit, name = self.options.limit(length, self.client.max_length)
        if name == "context":
            raise ValueError(
                f"The prompt has {length} tokens, which leaves {limit} of the server's `--max-model-len` of "
                f"{self.client.max_length} to a completion, fewer than wanted. Shorten one of them, or raise that."
            )

    def __call__(
        self,
        requests: Sequence[Request],
        template_kwargs: Sequence[Mapping[str, Any] | None] | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[Candidate]:
        """A completion for each (prompt's id, prompt, number of the candidate); see `CandidateSampler`.

        Args:
            requests: for each prompt the numbers from 0, side by side.
        """
        kwargs = [None] * len(requests) if template_kwargs is None else template_kwargs
        pairs = groupby(zip(requests, kwargs, strict=True), key=lambda pair: pair[0][0])
        return run(self._sample([list(group) for _, group in pairs], on_batch))

    async def _sample(self, groups: list[list], on_batch: Callable[[int], None] | None) -> list[Candidate]:
        async def sample(group: list) -> list[Candidate]:
            (name, prompt, _), kwargs = group[0]
            found = await self.sample(name, prompt, len(group), kwargs)
            if on_batch is not None:
                on_batch(len(group))
            return found

        async with self.client.servers.connected():
            found = await asyncio.gather(*map(sample, groups))
        return [candidate for each in found for candidate in each]

    async def sample(
        self, name: str | int, prompt: Text, n: int, template_kwargs: Mapping[str, Any] | None = None
    ) -> list[Candidate]:
        """The first candidates of a prompt, by one request; inside a `connected` block of the servers.

        Args:
            name: the prompt's id. n: how many. template_kwargs: what the chat template gets beside its messages.

        Raises:
            RequestRefusedError: the server refuses this prompt. ServerError: see the class.
        """
        ids = tokenize_prompt(self.tokenizer, prompt, template_kwargs)[0].tolist()
        limit, _ = self.options.limit(len(ids), self.client.max_length)
        ends, strings = self.options.eos_token_ids, self.options.stop_strings
        answer = await self.client.complete(
            ids,
            max_tokens=limit,
            n=n,
            seed=stream_key(self.seed, json.dumps(name)),
            stop_token_ids=sorted(ends),
            stop=list(strings),
            **self.options.sampling.rollout(),
        )
        return [finish_candidate(self.tokenizer, each.tokens, ends, strings) for each in answer.completions]
