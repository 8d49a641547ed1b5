"""RAIN as a logits processor: a plain `generate` emits the tokens that the search commits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.generation import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from ..config import RainConfig
from ..engine.engine import RainEngine
from ..results.records import RainRecord
from ..scorers.base import ScorerError
from .checks import check_inputs, is_filled_cache, warn_of_use_cache
from .decoder import RainDecoder
from .generate import arguments_by_name
from .generation_options import HONORED, REFUSED, WITHOUT_EFFECT, refuse_options
from .inputs import PreparedGeneration, build_prompts, prepare_generation, prompts_for_scorers, strip_padding


class RAINLogitsProcessor(LogitsProcessor):
    """Leaves `generate` one possible token at each step: the next token that RAIN has committed.

    Stopping criteria, streamers and EOS are handled by `generate`. `generate` does not give a processor the maximum
    length, the generation config or the attention mask. The package's `generate` wrapper does; arguments given here
    take precedence. Without the wrapper (`unregister_rain`), pass all three. The wrapper also hands over the other
    processors of the call and its `prefix_allowed_tokens_fn`, which then shape the search, and its stopping criteria
    and stop strings, which then end the texts of the search; without the wrapper the search knows none of them.
    Padding without a mask is recognized by `pad_token_id` at the start of a row.

    Args:
        model: the model that generates. tokenizer: its tokenizer.
        config: see `RainDecoder`. scorer: see `RainDecoder`. embedder: see `RainDecoder`.
        max_new_tokens: as passed to `generate`; by default the limit of the call, or that of `generation_config`.
        generation_config: as passed to `generate`; by default the settings of the call.
        attention_mask: `(rows, length)`; by default the mask of the call.
        rain_prompts: see `RainDecoder.__call__`.

    Attributes:
        records: the `RainRecord` of each row so far.

    Raises:
        ValueError: at the first step, if the maximum length is unknown, or the call has arguments that the search
            would ignore.

    Relations: the tokens equal those of `strategy="rain"` with the same seed and length, which needs one forward pass
    less per token. Without the wrapper this holds for calls without such processors, criteria and strings.

    Example:
        model.generate(**inputs, logits_processor=[RAINLogitsProcessor(model, tokenizer)], max_new_tokens=64)
    """

    is_rain_processor = True  # the wrapper in registration.py checks this attribute, so it need not import this module

    def __init__(
        self,
        model,
        tokenizer,
        config: RainConfig | str | dict | None = None,
        scorer: Any = "self",
        *,
        embedder: Callable | None = None,
        max_new_tokens: int | None = None,
        generation_config=None,
        attention_mask: torch.Tensor | None = None,
        rain_prompts: Sequence[Any] | None = None,
    ):
        self.model = model
        self.decoder = RainDecoder(tokenizer, config, scorer, embedder=embedder)
        self.max_new_tokens = max_new_tokens
        self.generation_config = generation_config
        self.attention_mask = attention_mask
        self.rain_prompts = rain_prompts
        self._engine: RainEngine | None = None
        self._call: dict[str, Any] | None = None

    def record_call(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Store the arguments of a `generate` call for the search that it starts."""
        # `generate` fills an empty cache before it calls a processor.
        self._call = {
            name: value
            for name, value in arguments_by_name(args, kwargs).items()
            if not isinstance(value, Cache) or is_filled_cache(value)
        }

    @property
    def records(self) -> list[RainRecord]:
        """One record per row of the last `generate` call."""
        return self._engine.records() if self._engine is not None else []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores `(rows, vocabulary)`: 0 for the committed token, `-inf` for all others."""
        engine = self._engine if self._is_continuation(input_ids) else None
        if engine is None:
            engine = self._engine = self._start(input_ids)
        forced = torch.full_like(scores, -torch.inf)
        tokens = [
            self._fill_token if number in self._ended else self._next(engine, number)
            for number in range(len(input_ids))
        ]
        forced[torch.arange(len(tokens)), torch.tensor(tokens)] = 0.0
        self._expected = torch.cat([input_ids, torch.tensor(tokens, device=input_ids.device).unsqueeze(1)], dim=1)
        return forced

    def _is_continuation(self, input_ids: torch.Tensor) -> bool:
        """Whether the ids continue the last step; `generate` pads rows that have ended."""
        if self._engine is None or self._call is not None or input_ids.shape != self._expected.shape:
            return False
        differs = input_ids != self._expected
        padded = differs[:, -1] & ~differs[:, :-1].any(dim=1) & (input_ids[:, -1] == self._padding)
        self._ended.update(padded.nonzero().flatten().tolist())  # by a criterion of the call
        return all(
            number in self._ended or (self._engine.requests[number].is_finished and not self._buffers[number])
            for number in differs.any(dim=1).nonzero().flatten().tolist()
        )

    def _start(self, input_ids: torch.Tensor) -> RainEngine:
        """Start a search for a new batch of prompts."""
        model, decoder = self.model, self.decoder
        call, self._call = self._call or {}, None
        config, new_tokens = self._limits(call, input_ids.shape[1])
        mask = self._mask(input_ids, config.pad_token_id, call)
        self._check_call(call, input_ids, mask)
        engine = decoder.build_engine(model)
        others = [each for each in call.get("logits_processor") or () if not isinstance(each, RAINLogitsProcessor)]
        settings, processors = prepare_generation(
            model,
            config,
            input_ids,
            mask,
            new_tokens,
            logits_processor=LogitsProcessorList(others),
            prefix_allowed_tokens_fn=call.get("prefix_allowed_tokens_fn"),
        )
        warn_of_use_cache(settings)
        strings = call.get("stop_strings")
        settings.stop_strings = settings.stop_strings if strings is None else strings
        rows = strip_padding(input_ids, mask)
        copies = len(rows) // len(self.rain_prompts or rows)
        scorer_prompts = prompts_for_scorers(decoder.tokenizer, rows, self.rain_prompts, copies)
        own = StoppingCriteriaList(call.get("stopping_criteria") or [])
        criteria = model._get_stopping_criteria(settings, own, tokenizer=decoder.tokenizer)
        prepared = PreparedGeneration(settings, scorer_prompts, processors, criteria)
        pad, eos = settings.pad_token_id, settings.eos_token_id
        self._fill_token = eos if isinstance(eos, int) else (eos or [pad or 0])[0]
        self._padding = self._fill_token if pad is None else pad
        self._ended: set[int] = set()
        engine.start(build_prompts(model, input_ids, mask, prepared), decoder.seed())
        self._buffers: list[deque[int]] = [deque() for _ in rows]
        return engine

    def _check_call(self, call: dict[str, Any], input_ids: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Raise `ValueError` for arguments of the call that the search would ignore."""
        refuse_options(call)
        options = {*HONORED, *REFUSED, *WITHOUT_EFFECT}
        inputs = {name: value for name, value in call.items() if name not in (*options, "input_ids")}
        check_inputs(self.model, input_ids, {**inputs, "attention_mask": mask}, inputs)

    def _limits(self, call: dict[str, Any], length: int) -> tuple[GenerationConfig, int]:
        """The generation config (given here, else that of the call), and the maximum number of new tokens."""
        config, changes = self.generation_config, {}
        if config is None:
            known = GenerationConfig().to_dict()
            config, changes = call.get("generation_config"), {key: call[key] for key in call if key in known}
        settings, _ = self.model._prepare_generation_config(config, **changes)
        if self.max_new_tokens is not None:
            return settings, self.max_new_tokens
        if settings.max_new_tokens is not None:
            return settings, settings.max_new_tokens
        own = (call.get("max_length"), getattr(config, "max_length", None), self.model.generation_config.max_length)
        if any(each is not None for each in own):
            return settings, settings.max_length - length
        if call:
            return settings, settings.max_length  # generate's default counts new tokens
        raise ValueError(
            "RAINLogitsProcessor does not know the maximum length, because `generate` was called without the "
            "package's wrapper. Pass `max_new_tokens` to RAINLogitsProcessor too, or call `register_rain()`."
        )

    def _mask(self, input_ids: torch.Tensor, pad: int | None, call: dict[str, Any]) -> torch.Tensor | None:
        mask = self.attention_mask if self.attention_mask is not None else call.get("attention_mask")
        if mask is not None:
            return mask.repeat_interleave(len(input_ids) // len(mask), dim=0)
        if pad is None:
            return None
        return (input_ids != pad).cumsum(dim=1) > 0

    def _next(self, engine: RainEngine, number: int) -> int:
        """The next committed token of a row; the search continues until there is one."""
        try:
            while not self._buffers[number] and not engine.requests[number].is_finished:
                for row, tokens in engine.step():
                    self._buffers[row].extend(tokens)
        except ScorerError as error:
            error.records = engine.records()
            raise
        # The search may end before generate does (new turn, shorter length): fill the row with EOS or padding.
        return self._buffers[number].popleft() if self._buffers[number] else self._fill_token
