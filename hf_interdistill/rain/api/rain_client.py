"""`RainClient`: RAIN with a model on a vLLM server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from transformers import GenerationConfig

from ...scoring.checks import as_list, check_same_length
from ...utils.async_calls import iterate, run
from ...utils.devices import find_device
from ...utils.server_pool import ModelServers
from ...utils.servers import ServerError
from ..config import RainConfig
from ..engine.engine import Prompt
from ..results.records import RainRecord
from ..scorers.base import Scorer, ScorerError
from ..scorers.embedder import TextEncoder
from ..scorers.resolve import scorer_from_config
from ..scorers.self_evaluation import SelfEvaluationScorer
from ..server.client import CompletionsClient
from ..server.engine import ServedEngine, rollout_stop_tokens
from ..server.judge import ServedJudge
from .checks import check_embedder
from .served_generation import ServedGeneration, saved_generation_config

_NONE: Mapping[str, None] = MappingProxyType({})


class RainClient:
    """RAIN (arXiv 2309.07124) with a model on a vLLM server.

    The search is the one of `RainDecoder`: the same constants, trees and records. Draws are the server's own, so trees
    are others than in process, with the same distribution. The same seed gives the same answers as long as the
    server's log probabilities do not depend on what it batches.

    Args:
        base_url: address of the server, `http://host:port`; or of several with the same model, as a list. A prompt
            stays with the server that had the fewest when it started; one that fails is left out, with a warning, and
            tried again at the start of the next call.
        model: the name that the model is served by.
        tokenizer: its tokenizer; compared with the server's vocabulary before the first search.
        config: a `RainConfig`, the name of a preset, or a dict of fields; `max_batch_size` prompts are in flight,
            over all servers.
        scorer: as for `RainDecoder`; `"self"` is the served model.
        generation_config: the options of the model; by default those saved beside the tokenizer, if there are any.
        embedder: as for `RainDecoder`.
        api_key, timeout, retries, backoff: see `ModelServer`.

    Raises:
        ValueError: the server cannot do what the search needs; the message names the flag that is missing.
        ServerError: the server cannot be reached, or fails; of several servers, all.

    Example:
        client = RainClient("http://localhost:8000", "HuggingFaceTB/SmolLM2-135M-Instruct", tokenizer)
        records = client.generate(["How do I bake bread?"], max_new_tokens=64)
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str,
        tokenizer,
        config: RainConfig | str | dict | None = None,
        scorer: Any = "self",
        *,
        generation_config: GenerationConfig | None = None,
        embedder: Callable | None = None,
        api_key: str | None = None,
        timeout: float = 300.0,
        retries: int = 5,
        backoff: float = 0.5,
    ):
        if tokenizer is None:
            raise ValueError("RAIN scores text, so it needs the tokenizer of the served model. Pass `tokenizer`.")
        servers = ModelServers(base_url, api_key=api_key, timeout=timeout, retries=retries, backoff=backoff)
        self.client = CompletionsClient(servers, model)
        self.tokenizer = tokenizer
        self.config = RainConfig.resolve(config)
        check_embedder(self.config, embedder)
        _refuse_settings_in_process(self.config)
        self.scorer = scorer_from_config(scorer, self.config)
        self.generation_config = saved_generation_config(tokenizer) if generation_config is None else generation_config
        self.embedder = embedder
        self._checked_scores = 0

    def generate(
        self,
        prompts: Sequence[Any],
        *,
        tools: Sequence[Any] | None = None,
        chat_template_kwargs: Sequence[Any] | None = None,
        **generation: Any,
    ) -> list[RainRecord]:
        """Search for every prompt.

        Args:
            prompts: texts, or lists of messages, which get the chat template.
            tools, chat_template_kwargs: one entry per prompt, for the chat template and for reward models.
            **generation: fields of `GenerationConfig`: `max_new_tokens`, `max_length`, `max_time`, `do_sample`,
                `temperature`, `top_k`, `top_p`, `repetition_penalty`, `eos_token_id`, `stop_strings`. Others are
                refused. `None` overrides how the model's own config samples.

        Returns:
            One record for each prompt, in order.

        Raises:
            ScorerError: the scorer failed. ServerError: the server failed in all tries. In both cases `error.records`
                holds what each prompt had committed.
            ValueError: options or prompts that cannot be used.
        """
        options = self.resolve(generation)
        built = self.build_prompts(prompts, options, {"tools": tools, "chat_template_kwargs": chat_template_kwargs})
        records: dict[int, RainRecord] = {}
        engine = self.build_engine(options)
        try:
            for number, record in self.search(engine, built, options):
                records[number] = record
        except (ScorerError, ServerError) as error:
            rest = {number: search.record() for number, search in engine.searches.items()}
            error.records = [each for _, each in sorted({**records, **rest}.items())]
            raise
        return [records[number] for number in range(len(built))]

    def resolve(self, generation: Mapping[str, Any]) -> ServedGeneration:
        """Generation options with those of the model; refuses what a server cannot do, before it is asked."""
        return ServedGeneration.resolve(generation, self.generation_config, self.tokenizer)

    def build_prompts(
        self, prompts: Sequence[Any], options: ServedGeneration, columns: Mapping[str, Sequence[Any] | None] = _NONE
    ) -> list[Prompt]:
        """Prompts to search from; the server is checked first.

        Args:
            columns: `tools` and `chat_template_kwargs` of `generate`.
        """
        self.check(options)
        prompts = as_list("prompts", prompts)
        given = {name: as_list(name, values) for name, values in columns.items() if values is not None}
        check_same_length({"prompts": prompts, **{f"`{name}`": values for name, values in given.items()}})
        build = options.prompt_builder(self.tokenizer, self.client.max_length)
        rows = [
            {name: values[number] for name, values in given.items() if values[number] is not None}
            for number in range(len(prompts))
        ]
        return [build(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]

    def check(self, options: ServedGeneration) -> None:
        """Check the server, once and where servers were left out, and the options against it; errors as in the
        class."""
        sampling = options.sampling
        sampling.check_nucleus()
        scores = sampling.num_scores(self.config, self._has_encoder)
        if scores > self._checked_scores or self.client.servers.is_due:
            scores = max(scores, self._checked_scores)
            run(self._check(options, scores))
            self._checked_scores = scores
        sampling.check_processed(self.config, self.client.is_processed)

    async def _check(self, options: ServedGeneration, scores: int) -> None:
        reason = options.sampling.reason_for_scores(self.config, self._has_encoder)
        stops = sorted({*options.eos_token_ids, *self._stop_tokens})
        async with self.client.servers.connected():
            await self.client.check(self.tokenizer, scores, stops, reason)

    @cached_property
    def _stop_tokens(self) -> list[int]:
        return rollout_stop_tokens(self.tokenizer, self.config)

    @property
    def _has_encoder(self) -> bool:
        return self.embedder is not None or self.config.similarity_model is not None

    def build_engine(self, options: ServedGeneration, isolates_errors: bool = False) -> ServedEngine:
        """An engine with a bound scorer and a loaded encoder; `isolates_errors` as in `ServedEngine`."""
        if self.embedder is None and self.config.similarity_model is not None:
            self.embedder = TextEncoder.from_pretrained(self.config.similarity_model, find_device(None))
        return ServedEngine(
            self.client,
            self.tokenizer,
            self.config,
            options.sampling,
            self.scorer.bind(self, self.tokenizer),
            self.embedder,
            stop_tokens=self._stop_tokens,
            isolates_errors=isolates_errors,
        )

    def search(
        self, engine: ServedEngine, prompts: Sequence[Prompt], options: ServedGeneration
    ) -> Iterator[tuple[int, RainRecord]]:
        """Numbers and records of prompts, each when its text has ended."""
        seed = self.config.seed if self.config.seed is not None else int(torch.randint(2**62, ()))

        def records() -> AsyncGenerator[tuple[int, RainRecord], None]:
            return engine.run(prompts, seed, options.stop_strings)

        return iterate(records)

    def bind_judge(self, scorer: SelfEvaluationScorer, tokenizer) -> Scorer:
        """The served model as its own judge, with the settings of a scorer that has no model of its own."""
        return ServedJudge(self.client, tokenizer, scorer.prompt, scorer.vote, scorer.calibrate)


def _refuse_settings_in_process(config: RainConfig) -> None:
    """Raise `ValueError` for settings of passes, which are the server's own business."""
    if config.num_speculative:
        raise ValueError(
            f"`num_speculative` is {config.num_speculative}, but a server batches by itself and decodes only what is "
            "asked for. Leave it out; `leaves_per_step` puts more requests of a prompt in flight."
        )
    if config.cuda_graphs:
        raise ValueError("`cuda_graphs` is true, but the server decides that for its model. Leave it out.")
