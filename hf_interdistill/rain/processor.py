"""RAIN as a logits processor: a plain `generate` writes what the search commits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.generation import LogitsProcessor

from .config import RainConfig
from .decoder import RainDecoder
from .engine import RainEngine
from .preparation import build_prompts, prepare_plainly, shown_prompts, strip_padding
from .records import RainRecord
from .scorers import ScorerError


class RAINLogitsProcessor(LogitsProcessor):
    """Leaves `generate` one token to choose at each step: the next one that RAIN has committed.

    Stopping criteria, streamers and EOS are `generate`'s own. What `generate` does not tell a processor must be given
    here: the length, the generation config whose processors shape the candidates, and the attention mask (otherwise
    padding is recognized by `pad_token_id` at the start of a row).

    Args:
        model: the model that also generates. tokenizer: its tokenizer.
        config: see `RainDecoder`. scorer: see `RainDecoder`. embedder: see `RainDecoder`.
        max_new_tokens: as passed to `generate`; by default that of `generation_config`, else what the context allows.
        generation_config: as passed to `generate`; the model's own by default.
        attention_mask: `(rows, length)`.
        rain_prompts: see `RainDecoder.__call__`.

    Attributes:
        records: the `RainRecord` of each row so far.

    Relations: the tokens are those of `strategy="rain"` with the same seed and length; that way costs one forward pass
    a token less.

    Example:
        model.generate(**inputs, logits_processor=[RAINLogitsProcessor(model, tokenizer, max_new_tokens=64)],
                       max_new_tokens=64)
    """

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

    @property
    def records(self) -> list[RainRecord]:
        """One record a row, of the last `generate`."""
        return self._engine.records() if self._engine is not None else []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores `(rows, vocabulary)`: 0 for the committed token, `-inf` for all others."""
        if not self._goes_on(input_ids):
            self._start(input_ids)
        forced = torch.full_like(scores, -torch.inf)
        tokens = [self._next(number) for number in range(len(input_ids))]
        forced[torch.arange(len(tokens)), torch.tensor(tokens)] = 0.0
        self._expected = torch.cat([input_ids, torch.tensor(tokens, device=input_ids.device).unsqueeze(1)], dim=1)
        return forced

    def _goes_on(self, input_ids: torch.Tensor) -> bool:
        """Whether these are the tokens left last time (rows that have ended may differ: `generate` pads them)."""
        if self._engine is None or input_ids.shape != self._expected.shape:
            return False
        same = (input_ids == self._expected).all(dim=1).tolist()
        return all(same[number] or self._has_ended(number) for number in range(len(same)))

    def _has_ended(self, number: int) -> bool:
        return self._engine.jobs[number].is_finished and not self._buffers[number]

    def _start(self, input_ids: torch.Tensor) -> None:
        """Begin a search for a new batch of prompts."""
        model, decoder = self.model, self.decoder
        self._engine = decoder.build_engine(model)
        settings, processors = prepare_plainly(model, self.generation_config, input_ids, self.max_new_tokens)
        mask = self._mask(input_ids, settings.pad_token_id)
        rows = strip_padding(input_ids, mask)
        copies = len(rows) // len(self.rain_prompts or rows)
        prepared = {
            "generation_config": settings,
            "processors": processors,
            "criteria": None,
            "shown": shown_prompts(decoder.tokenizer, rows, self.rain_prompts, copies),
        }
        eos = settings.eos_token_id
        self._closing = eos if isinstance(eos, int) else (eos or [settings.pad_token_id or 0])[0]
        self._engine.start(build_prompts(model, input_ids, mask, prepared), decoder.seed())
        self._buffers: list[deque[int]] = [deque() for _ in rows]

    def _mask(self, input_ids: torch.Tensor, pad: int | None) -> torch.Tensor | None:
        if self.attention_mask is not None:
            copies = len(input_ids) // len(self.attention_mask)
            return self.attention_mask.repeat_interleave(copies, dim=0)
        if pad is None:
            return None
        return (input_ids != pad).cumsum(dim=1) > 0

    def _next(self, number: int) -> int:
        """The next committed token of a row; the search goes on until there is one."""
        try:
            while not self._buffers[number] and not self._engine.jobs[number].is_finished:
                for row, tokens in self._engine.round():
                    self._buffers[row].extend(tokens)
        except ScorerError as error:
            error.records = self._engine.records()
            raise
        # A search that has ended where generate goes on (a new turn, a shorter length) closes the text.
        return self._buffers[number].popleft() if self._buffers[number] else self._closing
