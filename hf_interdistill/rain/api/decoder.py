"""`RainDecoder`: RAIN as the decoding loop of `generate`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation import GenerateDecoderOnlyOutput

from ...utils.versions import warn_if_untested
from ..config import RainConfig
from ..engine.engine import RainEngine
from ..results.records import RainRecord
from ..scorers.base import ScorerError, as_scorer
from ..scorers.embedder import TextEncoder
from .inputs import build_prompts, check_inputs, check_model, check_tokenizer, shown_prompts, strip_padding


@dataclass
class RainDecoderOutput(GenerateDecoderOnlyOutput):
    """What `generate` returns with `return_dict_in_generate=True`.

    Args:
        sequences: `(rows, length)`: prompts and answers, padded on the right.
        rain: one `RainRecord` a row (`tree`, `stats`, ...).
        rain_totals: forward passes, tokens and judge calls of all rows together.
    """

    rain: list[RainRecord] | None = None
    rain_totals: dict[str, int] | None = None


class RainDecoder:
    """RAIN (arXiv 2309.07124) as `custom_generate`.

    Args:
        tokenizer: the model's tokenizer.
        config: a `RainConfig`, the name of a preset, or a dict of fields; by default the constants of the
            harmlessness experiment.
        scorer: `"self"`, a `Scorer`, a `RewardScorer`, or a function of a list of texts (see `as_scorer`).
        embedder: `embedder(texts)` -> array `(texts, dimensions)`, in place of `config.similarity_model`.
        streamer: gets committed tokens. (`generate` does not hand its own `streamer` to a callable; with the package's
            `generate` wrapper installed it is passed on.)

    Raises:
        ScorerError: the scorer failed; `error.records` holds what each row had committed.

    Relations: `strategy="rain"` calls it; `RAINLogitsProcessor` is the way in for a plain `generate`.

    Example:
        out = model.generate(**inputs, custom_generate=RainDecoder(tokenizer, scorer="self"), max_new_tokens=64)
    """

    is_rain_decoder = True  # what the wrapper in registration.py looks for, without importing this module

    def __init__(
        self,
        tokenizer,
        config: RainConfig | str | dict | None = None,
        scorer: Any = "self",
        *,
        embedder: Callable | None = None,
        streamer=None,
    ):
        self.tokenizer = tokenizer
        self.config = RainConfig.resolve(config)
        self.scorer = as_scorer(scorer, self.config.judge, self.config.judge_vote, self.config.cuda_graphs)
        self.embedder = embedder
        self.streamer = streamer
        self._is_prompt_streamed = False
        self._given: dict[str, Any] | None = None

    def for_call(self, given: dict[str, Any], streamer=None) -> RainDecoder:
        """A copy for one call of `generate`.

        Args:
            given: the arguments that the user passed, by name.
            streamer: the call's own, if there is one: `generate` has it too, and so has sent it the prompt.
        """
        copied = copy.copy(self)
        copied._given = given
        if streamer is not None:
            copied.streamer, copied._is_prompt_streamed = streamer, True
        return copied

    def build_engine(self, model) -> RainEngine:
        """An engine for a model, with the scorer bound and the encoder loaded."""
        warn_if_untested()
        check_model(model)
        check_tokenizer(model, self.tokenizer)
        if self.embedder is None and self.config.similarity_model is not None:
            self.embedder = TextEncoder.from_pretrained(self.config.similarity_model, model.device)
        scorer = self.scorer.bind(model, self.tokenizer)
        return RainEngine(model, self.tokenizer, self.config, scorer, self.embedder)

    def seed(self) -> int:
        """The config's seed, or one from torch's generator."""
        return self.config.seed if self.config.seed is not None else int(torch.randint(2**62, ()))

    def __call__(
        self,
        model,
        input_ids: torch.LongTensor,
        logits_processor=None,
        stopping_criteria=None,
        generation_config=None,
        rain_prompts: Sequence[Any] | None = None,
        **model_kwargs,
    ):
        """The decoding loop; `generate` calls it.

        Args:
            input_ids: `(rows, length)`, left-padded; `attention_mask` in `model_kwargs` tells the padding.
            logits_processor: shape candidates and rollouts.
            stopping_criteria: end a text; called with ids `(1, tokens)` and `scores=None`. They end candidates and
                rollouts too, so they are asked about texts that are never committed, in any order and more than once;
                of the committed text they are asked after every commit. One that counts its calls belongs in a plain
                `generate` with `RAINLogitsProcessor`, which asks once a committed token.
            generation_config: `max_length`, `eos_token_id`, `pad_token_id`, `return_dict_in_generate`.
            rain_prompts: the prompts as scorers should see them (texts or messages), one a prompt.
            **model_kwargs: as prepared by `generate`.

        Returns:
            `(rows, length)` token ids, or a `RainDecoderOutput`.
        """
        check_model(model, generation_config)
        check_inputs(model, input_ids, model_kwargs, self._given)
        engine = self.build_engine(model)
        mask = model_kwargs.get("attention_mask")
        rows = strip_padding(input_ids, mask)
        copies = generation_config.num_return_sequences or 1
        settings = {
            "generation_config": generation_config,
            "processors": logits_processor,
            "criteria": stopping_criteria,
            "shown": shown_prompts(self.tokenizer, rows, rain_prompts, copies),
        }
        engine.start(build_prompts(model, input_ids, mask, settings), self.seed())
        self._run(engine, input_ids)
        records = engine.records()
        sequences = _pad(input_ids, [record.tokens for record in records], generation_config)
        if not generation_config.return_dict_in_generate:
            return sequences
        return RainDecoderOutput(sequences=sequences, rain=records, rain_totals=dict(engine.totals))

    def _run(self, engine: RainEngine, input_ids: torch.Tensor) -> None:
        """Search to the end; committed tokens go to the streamer."""
        if self.streamer is not None and not self._is_prompt_streamed:
            self.streamer.put(input_ids.cpu())
        if self.streamer is not None and len(input_ids) > 1:
            raise ValueError(
                f"A streamer shows one text, but there are {len(input_ids)} rows. Stream one prompt at a time."
            )
        try:
            while not engine.is_finished:
                for _, tokens in engine.step():
                    if self.streamer is not None:
                        self.streamer.put(torch.tensor(tokens))
        except ScorerError as error:
            error.records = engine.records()
            raise
        if self.streamer is not None:
            self.streamer.end()


def _pad(input_ids, answers: list[list[int]], generation_config) -> torch.Tensor:
    """Prompts and answers as one tensor, padded on the right with `pad_token_id` (else EOS, as `generate` does)."""
    pad = generation_config.pad_token_id
    if pad is None:
        eos = generation_config.eos_token_id
        pad = eos if isinstance(eos, int) else (eos or [0])[0]
    longest = max(map(len, answers))
    padded = [answer + [pad] * (longest - len(answer)) for answer in answers]
    return torch.cat([input_ids, torch.tensor(padded, dtype=input_ids.dtype, device=input_ids.device)], dim=1)
