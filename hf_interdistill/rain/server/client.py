"""Requests to `/v1/completions` of vLLM, and what they answer; checks of a server before the first search."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...utils.served_models import PROBE, check_vocabulary, find_served_model
from ...utils.server_pool import ModelServers, Seat
from ...utils.servers import ModelServer, RequestRefusedError, ServerError
from .sampling import TokenScores

logger = logging.getLogger(__name__)

_MASKED = -9000.0  # what vLLM sends for -inf is -9999
_SEEDS = 1 << 53
_COMPARED = 5  # log probabilities by which the models of several servers are compared
_MOST_STOP_STRINGS = 4  # in a request: the default of vLLM's VLLM_MAX_STOP_STRINGS
_ALIKE = 0.25  # nats, their mean difference; bfloat16 rounds logits by up to 0.06
_PLAIN = (
    "RAIN sends token ids, `top_k`, `allowed_token_ids` and `stop_token_ids`, and reads token ids and log "
    "probabilities, which the plain OpenAI API does not have. Use a vLLM server (`vllm serve MODEL`)."
)


@dataclass(frozen=True)
class Completion:
    """What was generated: token ids and, for each, the log probabilities of the likeliest tokens and its own."""

    tokens: tuple[int, ...]
    scores: tuple[TokenScores, ...]


@dataclass(frozen=True)
class Answer:
    """Completions of a request, and its costs: `requests`, `forward_passes`, `forward_tokens`."""

    completions: list[Completion]
    costs: Counter


@dataclass(frozen=True)
class _Served:
    """What is found out about a server: see `CompletionsClient`; `scores` are those of a test text's next token."""

    max_length: int | None
    is_processed: bool
    takes_stop_tokens: bool
    scores: TokenScores


class CompletionsClient:
    """A causal language model on a vLLM server, or on several.

    Args:
        servers: where it is. model: the name that it is served by.

    Attributes:
        max_length: the most tokens of prompt and text, `None` if the server does not say.
        is_processed: whether log probabilities are those after penalties, temperature, top-k and top-p.
        takes_stop_tokens: whether a request may have as many `stop_token_ids` as `check` was told of.
    """

    def __init__(self, servers: ModelServers, model: str):
        if not isinstance(model, str) or not model:
            raise ValueError(f"`model` is {model!r}, but must be the name that the server serves it by.")
        self.servers, self.model = servers, model
        self.max_length: int | None = None
        self.is_processed, self.takes_stop_tokens = False, True
        self._place: ModelServers | Seat = servers

    def seated(self, seat: Seat) -> CompletionsClient:
        """The same model, on the server of one prompt."""
        client = copy.copy(self)
        client._place = seat
        return client

    async def complete(
        self, prompt: Sequence[int], *, max_tokens: int, logprobs: int | None = None, n: int = 1, **parameters: Any
    ) -> Answer:
        """Continue token ids.

        Args:
            prompt: token ids. max_tokens: length of each completion, unless it is stopped before.
            logprobs: number of likeliest tokens whose log probabilities are wanted, for each token.
            n: number of completions.
            **parameters: of the request, beside those (`temperature`, `seed`, `stop_token_ids`, ...). Of `stop` the
                server gets as many strings as vLLM takes; the caller ends texts at all of them.

        Raises:
            RequestRefusedError: the server cannot do this. ServerError: it failed, or its answer is not usable.
        """
        body = _body(self.model, prompt, max_tokens=max_tokens, logprobs=logprobs, n=n, **parameters)
        return await self._place.call(lambda server: _complete(server, body))

    async def check(self, tokenizer, logprobs: int, stop_tokens: Sequence[int] = (), reason: str = "") -> None:
        """Find out whether the servers can answer a search, before the first one. Servers that cannot, or that answer
        otherwise than the first one that can, are left out with a warning.

        Args:
            tokenizer: the model's. logprobs: log probabilities per token that will be asked for.
            stop_tokens: the most `stop_token_ids` that a request will have.
            reason: why so many log probabilities are needed, for a message.

        Raises:
            ValueError: another model or vocabulary; an option of the server that is missing, which the message names.
            ServerError: there is no server, or it fails.
        """
        asked = logprobs if len(self.servers.all) == 1 else max(logprobs, _COMPARED)
        found = await self.servers.examine(
            lambda server: _examine(server, self.model, tokenizer, asked, stop_tokens, reason), _difference
        )
        self.max_length, self.is_processed = found[0].max_length, found[0].is_processed
        self.takes_stop_tokens = all(each.takes_stop_tokens for each in found)


def _body(model: str, prompt: Sequence[int], **parameters: Any) -> dict[str, Any]:
    """A request of `CompletionsClient.complete`."""
    body = {
        "model": model,
        "prompt": list(prompt),
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "ignore_eos": True,  # EOS is among the `stop_token_ids` where it ends a text
        # Left out, these would be those of the model's generation config on the server.
        **{"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
        **parameters,
    }
    if "seed" in body:
        body["seed"] %= _SEEDS
    if "stop" in body:
        body["stop"] = list(body["stop"])[:_MOST_STOP_STRINGS]
    return body


async def _complete(server: ModelServer, body: dict[str, Any]) -> Answer:
    """The answer of a server; `ServerError` if it is not usable."""
    answer = await server.post("/v1/completions", body)
    try:
        completions = [_read(choice, body["logprobs"]) for choice in answer["choices"]]
        usage = answer.get("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        tokens = usage.get("prompt_tokens", len(body["prompt"])) - cached
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ServerError(
            f"The server {server.url} answered without token ids or log probabilities "
            f"({type(error).__name__}: {error}). {_PLAIN}"
        ) from error
    if len(completions) != body["n"]:
        raise ServerError(
            f"The server {server.url} was asked for {body['n']} completions, and sent {len(completions)}."
        )
    lengths = [len(each.tokens) for each in completions]
    costs = Counter(requests=1, forward_passes=max(lengths), forward_tokens=tokens + sum(lengths))
    return Answer(completions, costs)


async def _examine(
    server: ModelServer, model: str, tokenizer, logprobs: int, stop_tokens: Sequence[int], reason: str
) -> _Served:
    """What a server can do; arguments and errors as in `CompletionsClient.check`."""
    max_length = (await find_served_model(server, model)).max_length
    await check_vocabulary(server, model, tokenizer)
    prompt = tokenizer(PROBE, add_special_tokens=False)["input_ids"][:8]

    async def complete(max_tokens: int, logprobs: int | None = None, n: int = 1, **parameters: Any) -> Answer:
        return await _complete(
            server, _body(model, prompt, max_tokens=max_tokens, logprobs=logprobs, n=n, **parameters)
        )

    try:
        (first,) = (await complete(1, logprobs, temperature=0.0)).completions
    except RequestRefusedError as error:
        if "logprobs" not in error.reason:
            raise
        raise ValueError(
            f"The search needs the log probabilities of {logprobs} tokens, which the server refuses "
            f"({error.reason}). {reason}Start it with `--max-logprobs {logprobs}`."
        ) from error
    if len(first.scores[0]) < logprobs:
        raise ValueError(
            f"The search needs the log probabilities of {logprobs} tokens, but the server sends "
            f"{len(first.scores[0])}. {reason}Start it with `--max-logprobs {logprobs}`."
        )
    rare, end = first.scores[0][-1][0], first.tokens[0]
    stops = [end, *(token for token in stop_tokens if token != end)][: max(1, len(stop_tokens))]

    async def stop() -> tuple[bool, Answer]:
        try:
            return True, await complete(2, temperature=0.0, stop_token_ids=stops)
        except RequestRefusedError as error:
            if "stop" not in error.reason.lower() or len(stops) == 1:
                raise
            logger.warning(
                f"{server.url} refuses {len(stops)} `stop_token_ids` ({error.reason}). Rollouts are cut here instead, "
                "and cost a few tokens more. To avoid that, start the server with the environment variable "
                f"`VLLM_MAX_STOP_TOKEN_IDS={len(stops)}`."
            )
        return False, await complete(2, temperature=0.0, stop_token_ids=[end])

    allowed, narrow, (takes_stop_tokens, stopped) = await asyncio.gather(
        complete(1, 1, temperature=0.0, allowed_token_ids=[rare]),
        complete(1, n=8, temperature=2.0, top_k=1, seed=1),
        stop(),
    )
    kept = [rare], [end] * 8, [end]
    for name, answer, wanted in zip(
        ("allowed_token_ids", "top_k", "stop_token_ids"), (allowed, narrow, stopped), kept, strict=True
    ):
        tokens = [token for each in answer.completions for token in each.tokens]
        if tokens != wanted:
            raise ValueError(f"The server {server.url} does not apply `{name}`. {_PLAIN}")
    # Of the one token that was allowed: its share of the vocabulary, or all that the mask leaves.
    is_processed = dict(allowed.completions[0].scores[0])[rare] > -1e-3
    return _Served(max_length, is_processed, takes_stop_tokens, first.scores[0])


def _difference(wanted: _Served, found: _Served, url: str) -> str | None:
    """What a server does otherwise than the one at `url`; `None` if they serve the same model alike."""
    if found.max_length != wanted.max_length:
        return f"has a `--max-model-len` of {found.max_length}, not of {wanted.max_length} as on {url}"
    if found.is_processed != wanted.is_processed:
        return f"has another `--logprobs-mode` than that on {url}"
    ours, theirs = dict(wanted.scores), dict(found.scores)
    gaps = [abs(ours[token] - theirs[token]) for token in ours.keys() & theirs.keys()]
    if not gaps or sum(gaps) / len(gaps) > _ALIKE:
        return f"gives a test text's next tokens other probabilities: it has another model than that on {url}"
    return None


def _read(choice: dict[str, Any], logprobs: int | None) -> Completion:
    tokens = tuple(int(token) for token in choice["token_ids"])
    if not tokens:
        raise ValueError("a completion has no tokens")
    if logprobs is None:
        return Completion(tokens, ())
    scores = tuple(_scores(each) for each in choice["logprobs"]["top_logprobs"])
    if len(scores) != len(tokens):
        raise ValueError(f"there are {len(tokens)} tokens, but log probabilities of {len(scores)}")
    return Completion(tokens, scores)


def _scores(top: dict[str, float]) -> list[tuple[int, float]]:
    """Token ids and log probabilities, likeliest first; of equal ones the smaller id first."""
    found = [(int(name.removeprefix("token_id:")), float(score)) for name, score in top.items()]
    return sorted((each for each in found if each[1] > _MASKED), key=lambda each: (-each[1], each[0]))
