"""Samples completions of a causal language model, each from its own stream of random numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel
from transformers.generation import StoppingCriteriaList, StopStringCriteria

from ..rain.engine.sampler import sample
from ..scoring.formatting import Text
from ..scoring.prompts import tokenize_prompt
from ..utils.context_length import context_length
from ..utils.fields import refuse_unknown
from ..utils.random_streams import stream_key

# One sample is drawn per row, so these would have no effect.
_UNAVAILABLE = {"num_beams": (None, 1), "num_return_sequences": (None, 1), "do_sample": (None, True)}


@dataclass(frozen=True)
class Candidate:
    """A sampled completion: its text, and `eos`, `stop` (a stop string) or `length` for why it ended."""

    text: str
    finish_reason: str


class CandidateSampler:
    """Samples completions with `generate`.

    Candidate `i` of a prompt is drawn with random numbers that depend on (`seed`, the prompt's id, i) only, so it is
    the same in any batch, after a restart, and for any n (up to rounding, see `rain/engine/sampler.py`).

    Args:
        model: a causal LM. tokenizer: its own.
        generation: fields of `GenerationConfig`; the model's own fill the gaps. Samples are always drawn.
        batch_size: completions per forward pass.

    Raises:
        ValueError: an unknown field, or one that leaves nothing to sample (beams, `do_sample=False`).
    """

    def __init__(self, model: PreTrainedModel, tokenizer, generation: dict[str, Any], *, seed: int, batch_size: int):
        self.model, self.tokenizer, self.seed, self.batch_size = model.eval(), tokenizer, seed, batch_size
        check_generation(generation)
        settings = {**generation, "do_sample": True}
        stops = settings.pop("stop_strings", None) or []  # `generate` loses the tokenizer that it needs for them
        self.stop_strings = [stops] if isinstance(stops, str) else list(stops)
        self.config = GenerationConfig(**settings)
        if self._setting("pad_token_id") is None:  # only fills rows that have ended
            self.config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        if self._setting("max_new_tokens") is None:
            raise ValueError(
                "`generation` has no `max_new_tokens`, and neither has the model. Say how long texts may be."
            )

    def check(self, prompt: Text, template_kwargs: Mapping[str, Any] | None = None) -> None:
        """Raise `ValueError` for a prompt that leaves no room for a completion in the model's context."""
        length = tokenize_prompt(self.tokenizer, prompt, template_kwargs).shape[1]
        new = self._setting("max_new_tokens")
        context = context_length(self.model)
        if length == 0:
            raise ValueError("The prompt has no tokens. Give it some text.")
        if context is not None and length + new > context:
            raise ValueError(
                f"The prompt has {length} tokens, which with `max_new_tokens={new}` exceeds the model's context of "
                f"{context}. Shorten one of them."
            )

    def __call__(
        self,
        requests: Sequence[tuple[str | int, Text, int]],
        template_kwargs: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> list[Candidate]:
        """A completion for each (prompt's id, prompt, number of the candidate).

        Args:
            template_kwargs: for each request, what the chat template gets beside its messages.
        """
        template_kwargs = [None] * len(requests) if template_kwargs is None else template_kwargs
        candidates = []
        for start in range(0, len(requests), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            candidates += self._sample(requests[chunk], template_kwargs[chunk])
        return candidates

    @torch.no_grad()
    def _sample(self, requests: Sequence[tuple[str | int, Text, int]], template_kwargs: Sequence) -> list[Candidate]:
        rows = [
            tokenize_prompt(self.tokenizer, prompt, kwargs)[0]
            for (_, prompt, _), kwargs in zip(requests, template_kwargs, strict=True)
        ]
        width = max(len(row) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, width - len(row) :], mask[number, width - len(row) :] = row, 1
        keys = [stream_key(self.seed, json.dumps(name), number) for name, _, number in requests]
        criteria = [StopStringCriteria(self.tokenizer, self.stop_strings)] if self.stop_strings else []
        output = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            generation_config=self.config,
            custom_generate=_sample_streams,
            stream_keys=keys,
            stopping_criteria=StoppingCriteriaList(criteria),
        )
        return [self._finish(row) for row in output[:, width:].tolist()]

    def _finish(self, ids: list[int]) -> Candidate:
        eos = self._setting("eos_token_id")
        ends = {eos} if isinstance(eos, int) else set(eos or ())
        end = next((position for position, token in enumerate(ids) if token in ends), None)
        text = self.tokenizer.decode(ids if end is None else ids[: end + 1], skip_special_tokens=True)
        ends_at = [text.index(stop) + len(stop) for stop in self.stop_strings if stop in text]
        if ends_at:  # the stop string is kept, as `generate` does; what follows is padding
            return Candidate(text[: min(ends_at)], "stop")
        return Candidate(text, "length" if end is None else "eos")

    def _setting(self, name: str):
        """A field of the generation config, or the model's own."""
        value = getattr(self.config, name)
        return value if value is not None else getattr(self.model.generation_config, name)


def check_generation(generation: dict[str, Any]) -> None:
    """Raise `ValueError` for fields of `GenerationConfig` that are unknown or leave nothing to sample."""
    known = [name for name in GenerationConfig().to_dict() if not name.startswith("_")]
    refuse_unknown("`generation`", generation, known)
    for name, allowed in _UNAVAILABLE.items():
        if generation.get(name) not in allowed:
            raise ValueError(
                f"`generation` has `{name}: {generation[name]!r}`, but candidates are sampled one by one. Leave it "
                "out; `n` says how many there are."
            )


class _StreamedDraw(LogitsProcessor):
    """Leaves the one token that each row's stream draws."""

    def __init__(self, keys: Sequence[int], width: int):
        self.keys, self.width = keys, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.width
        drawn = sample(scores, [stream_key(key, step) for key in self.keys])
        return torch.full_like(scores, -torch.inf).scatter(1, drawn.unsqueeze(1), 0.0)


def _sample_streams(model, input_ids, logits_processor, stopping_criteria, generation_config, stream_keys, **kwargs):
    """The sampling loop of `generate`, with all it has prepared, on random numbers of our own."""
    logits_processor.append(_StreamedDraw(stream_keys, input_ids.shape[1]))
    generation_config.do_sample = False  # what is left is taken
    return model._sample(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
