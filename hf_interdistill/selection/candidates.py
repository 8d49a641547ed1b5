"""Samples completions of a causal language model, each from its own stream of random numbers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel
from transformers.generation import StoppingCriteriaList, StopStringCriteria

from ..rain.api.generate import without_stop_strings
from ..rain.api.generation_options import REFUSED
from ..rain.engine.sampler import sample
from ..scoring.formatting import Text
from ..scoring.prompts import tokenize_prompt
from ..utils.context_length import context_length
from ..utils.fields import refuse_unknown
from ..utils.random_streams import stream_key

# Name -> values that may be set, and why no others.
_ONE_BY_ONE = "candidates are sampled one by one, by the model alone. Leave it out; `n` says how many there are."
_TEXTS = "a job keeps only texts. Leave it out."
_UNAVAILABLE: dict[str, tuple[tuple, str]] = {
    **{name: (neutral, _ONE_BY_ONE) for name, (neutral, _, _) in REFUSED.items() if name != "guidance_scale"},
    **dict.fromkeys(
        ("output_scores", "output_logits", "output_attentions", "output_hidden_states", "return_dict_in_generate"),
        ((None, False), _TEXTS),
    ),
    "num_return_sequences": ((None, 1), _ONE_BY_ONE),
    "do_sample": ((None, True), _ONE_BY_ONE),
    "token_healing": ((None, False), "candidates continue the prompt as it is. Heal the prompts first."),
    "min_length": (
        (None, 0),
        "it counts the padding of a batch, on which candidates must not depend. Use `min_new_tokens`.",
    ),
    "max_time": ((None,), "candidates would then depend on the machine. Limit `max_new_tokens`."),
}


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
        fixed = {"num_beams": 1, "num_return_sequences": 1, "do_sample": True, "return_dict_in_generate": False}
        own = {key: value for key, value in model.generation_config.to_dict().items() if value is not None}
        if generation.get("max_length") is not None:
            own.pop("max_new_tokens", None)
        settings = {**own, **generation, **fixed}
        _refuse_unavailable(settings, "The model's generation config")
        stops = settings.pop("stop_strings", None) or []  # `generate` loses the tokenizer that it needs for them
        self.stop_strings = [stops] if isinstance(stops, str) else list(stops)
        self.config = GenerationConfig(**settings)
        if self.config.pad_token_id is None:  # only fills rows that have ended
            self.config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        if self.config.max_new_tokens is None and self.config.max_length is None:
            raise ValueError(
                "`generation` has neither `max_new_tokens` nor `max_length`, and neither has the model. Say how long "
                "texts may be."
            )

    def check(self, prompt: Text, template_kwargs: Mapping[str, Any] | None = None) -> None:
        """Raise `ValueError` for a prompt that leaves no room for a completion in the model's context."""
        length = tokenize_prompt(self.tokenizer, prompt, template_kwargs).shape[1]
        new = self._new_tokens(length)
        context = context_length(self.model)
        if length == 0:
            raise ValueError("The prompt has no tokens. Give it some text.")
        if new < 1:
            raise ValueError(
                f"The prompt has {length} tokens, and `max_length={self.config.max_length}` leaves no room for a "
                "completion. Raise it, or set `max_new_tokens`."
            )
        if context is not None and length + new > context:
            raise ValueError(
                f"The prompt has {length} tokens, which with `max_new_tokens={new}` exceeds the model's context of "
                f"{context}. Shorten one of them."
            )

    def _new_tokens(self, length: int) -> int:
        """New tokens that may follow a prompt of `length` tokens."""
        most = self.config.max_new_tokens
        return most if most is not None else self.config.max_length - length

    def __call__(
        self,
        requests: Sequence[tuple[str | int, Text, int]],
        template_kwargs: Sequence[Mapping[str, Any] | None] | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[Candidate]:
        """A completion for each (prompt's id, prompt, number of the candidate).

        Args:
            template_kwargs: for each request, what the chat template gets beside its messages.
            on_batch: called after each forward batch with the number of its completions, to show progress.
        """
        template_kwargs = [None] * len(requests) if template_kwargs is None else template_kwargs
        candidates = []
        for start in range(0, len(requests), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            candidates += self._sample(requests[chunk], template_kwargs[chunk])
            if on_batch is not None:
                on_batch(len(requests[chunk]))
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
        limits = [self._new_tokens(len(row)) for row in rows]
        config = copy.copy(self.config)
        config.max_new_tokens = max(limits)
        output = without_stop_strings(self.model).generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            generation_config=config,
            custom_generate=_sample_streams,
            stream_keys=keys,
            stopping_criteria=StoppingCriteriaList(criteria),
        )
        new = output[:, width:].tolist()
        eos = self.config.eos_token_id
        ends = {eos} if isinstance(eos, int) else set(eos or ())
        return [
            finish_candidate(self.tokenizer, row[:limit], ends, self.stop_strings)
            for row, limit in zip(new, limits, strict=True)
        ]


def finish_candidate(tokenizer, ids: Sequence[int], ends: Collection[int], stop_strings: Sequence[str]) -> Candidate:
    """The candidate of sampled tokens; what follows its end is left out.

    Args:
        tokenizer: the model's. ids: tokens after the prompt. ends: EOS tokens. stop_strings: strings that end it.
    """
    end = next((position for position, token in enumerate(ids) if token in ends), None)
    text = tokenizer.decode(ids if end is None else ids[: end + 1], skip_special_tokens=True)
    ends_at = [text.index(stop) + len(stop) for stop in stop_strings if stop in text]
    if ends_at:  # the stop string is kept, as `generate` does; what follows is padding
        return Candidate(text[: min(ends_at)], "stop")
    return Candidate(text, "length" if end is None else "eos")


def check_generation(generation: dict[str, Any]) -> None:
    """Raise `ValueError` for fields of `GenerationConfig` that are unknown or leave nothing to sample."""
    known = [name for name in GenerationConfig().to_dict() if not name.startswith("_")]
    refuse_unknown("`generation`", generation, known)
    _refuse_unavailable(generation, "`generation`")


def _refuse_unavailable(settings: dict[str, Any], where: str) -> None:
    for name, (neutral, reason) in _UNAVAILABLE.items():
        if settings.get(name) not in neutral:
            raise ValueError(f"{where} has `{name}: {settings[name]!r}`, but {reason}")


class _StreamedDraw(LogitsProcessor):
    """Leaves the one token that each row's stream draws."""

    def __init__(self, keys: Sequence[int], width: int):
        self.keys, self.width = keys, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.width
        drawn = sample(scores, [stream_key(key, step) for key in self.keys])
        return torch.full_like(scores, -torch.inf).scatter(1, drawn.unsqueeze(1), 0.0)


def _sample_streams(model, input_ids, logits_processor, stopping_criteria, generation_config, stream_keys, **kwargs):
    """The sampling loop of `generate`, with everything that it prepared, on our own random numbers."""
    logits_processor.append(_StreamedDraw(stream_keys, input_ids.shape[1]))
    generation_config.do_sample = False  # what is left is taken
    return model._sample(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
