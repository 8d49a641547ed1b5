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
from ..scorers.base import ScorerError
from ..scorers.embedder import TextEncoder
from ..scorers.resolve import scorer_from_config
from .checks import check_embedder, check_inputs, check_model, check_tokenizer, warn_of_use_cache
from .inputs import PreparedGeneration, build_prompts, prompts_for_scorers, strip_padding, warn_of_empty_answer
from .streaming import ended_on_error


@dataclass
class RainDecoderOutput(GenerateDecoderOnlyOutput):
    """What `generate` returns with `return_dict_in_generate=True`.

    Args:
        sequences: prompts and answers, padded on the right, `(rows, length)`.
        rain: one `RainRecord` per row (`tree`, `stats`, ...).
        rain_totals: forward passes, tokens and judge calls of all rows together.
    """

    rain: list[RainRecord] | None = None
    rain_totals: dict[str, int] | None = None


class RainDecoder:
    """RAIN (arXiv 2309.07124), or another strategy of its engine, as `custom_generate`.

    Args:
        tokenizer: the model's tokenizer.
        config: a `RainConfig` (its `strategy` says how to search), the name of a preset, or a dict of fields; by
            default the constants of the harmlessness experiment.
        scorer: `"self"`, a `Scorer`, a `RewardScorer`, or a function of a list of texts (see `as_scorer`).
        embedder: `embedder(texts)` -> array or tensor `(texts, dimensions)`, used instead of
            `config.similarity_model`; for the strategy `rain` only.
        streamer: receives committed tokens. (`generate` does not pass its own `streamer` to a callable; the package's
            `generate` wrapper does.)

    Raises:
        ScorerError: the scorer failed; `error.records` holds what each row had committed.

    Relations: `strategy="rain"` calls it; `RAINLogitsProcessor` serves the decoding loop of a plain `generate`.

    Example:
        out = model.generate(**inputs, custom_generate=RainDecoder(tokenizer, scorer="self"), max_new_tokens=64)
    """

    is_rain_decoder = True  # the wrapper in registration.py checks this attribute, so it need not import this module

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
        check_embedder(self.config, embedder)
        self.scorer = scorer_from_config(scorer, self.config)
        self.embedder = embedder
        self.streamer = streamer
        self._is_prompt_streamed = False
        self._user_arguments: dict[str, Any] | None = None
        self._model = None

    def for_call(self, model, user_arguments: dict[str, Any], streamer=None) -> RainDecoder:
        """A copy for one call of `generate`.

        Args:
            model: the model to search with, whichever object `generate` hands over.
            user_arguments: the arguments that the user passed, by name.
            streamer: the streamer of the call, if any. `generate` sends it the prompt itself.
        """
        copied = copy.copy(self)
        copied._model, copied._user_arguments = model, user_arguments
        if streamer is not None:
            copied.streamer, copied._is_prompt_streamed = streamer, True
        return copied

    def build_engine(self, model, isolates_errors: bool = False) -> RainEngine:
        """An engine for a model, with a bound scorer and a loaded encoder; `isolates_errors` as in `RainEngine`."""
        warn_if_untested()
        check_model(model)
        check_tokenizer(model, self.tokenizer)
        if self.embedder is None and self.config.similarity_model is not None:
            self.embedder = TextEncoder.from_pretrained(self.config.similarity_model, model.device)
        scorer = self.scorer.bind(model, self.tokenizer)
        return RainEngine(model, self.tokenizer, self.config, scorer, self.embedder, isolates_errors=isolates_errors)

    def seed(self) -> int:
        """The seed of the config, or one from torch's generator."""
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
            model: the model.
            input_ids: `(rows, length)`, left-padded; `attention_mask` in `model_kwargs` marks the padding.
            logits_processor: shape candidates and rollouts.
            stopping_criteria: end a text; called with ids `(rows, length)`, in which the text stands in all rows, and
                `scores=None`. They also end candidates and rollouts, so they are called on texts that are never
                committed, in any order and more than once.
                They are called on the committed text after every commit. For a criterion that counts its calls, use a
                plain `generate` with `RAINLogitsProcessor`, which calls it once per committed token.
            generation_config: `max_length`, `eos_token_id`, `pad_token_id`, `return_dict_in_generate`.
            rain_prompts: the prompts that scorers should see (texts or messages), one per prompt.
            **model_kwargs: as prepared by `generate`.

        Returns:
            `(rows, length)` token ids, or a `RainDecoderOutput`.
        """
        with ended_on_error(self.streamer if self._model is None else None):  # otherwise `generate_rain` does it
            model = model if self._model is None else self._model
            check_model(model, generation_config)
            warn_of_use_cache(generation_config)
            check_inputs(model, input_ids, model_kwargs, self._user_arguments)
            engine = self.build_engine(model)
            mask = model_kwargs.get("attention_mask")
            rows = strip_padding(input_ids, mask)
            copies = generation_config.num_return_sequences or 1
            scorer_prompts = prompts_for_scorers(self.tokenizer, rows, rain_prompts, copies)
            prepared = PreparedGeneration(generation_config, scorer_prompts, logits_processor, stopping_criteria)
            engine.start(build_prompts(model, input_ids, mask, prepared), self.seed())
            self._run(engine, input_ids)
        records = engine.records()
        for ids, record in zip(rows, records, strict=True):
            warn_of_empty_answer(self.tokenizer, ids, record)
        sequences = _pad(input_ids, [record.tokens for record in records], generation_config)
        if not generation_config.return_dict_in_generate:
            return sequences
        totals = dict(engine.totals)
        return RainDecoderOutput(sequences=sequences, rain=records, rain_totals=totals)  # type: ignore[arg-type]

    def _run(self, engine: RainEngine, input_ids: torch.Tensor) -> None:
        """Search until all texts have ended; send committed tokens to the streamer."""
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
    """Prompts and answers as one tensor, padded on the right with `pad_token_id` (else EOS, as in `generate`)."""
    pad = generation_config.pad_token_id
    if pad is None:
        eos = generation_config.eos_token_id
        pad = eos if isinstance(eos, int) else (eos or [0])[0]
    longest = max(map(len, answers))
    padded = [answer + [pad] * (longest - len(answer)) for answer in answers]
    return torch.cat([input_ids, torch.tensor(padded, dtype=input_ids.dtype, device=input_ids.device)], dim=1)
