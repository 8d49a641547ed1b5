"""Rendered texts of other frameworks, and the tokens that training would have made of them."""

from __future__ import annotations

import logging

from jinja2 import TemplateError

from ..scoring.opening import LocalScorer
from ..scoring.rendered_answers import PROBE, apply_template, generation_prompt_of, render_answer
from ..utils.json_lines import refuse_half_characters

logger = logging.getLogger(__name__)


class RenderedTexts:
    """Tokens of texts that a client has rendered: whole, or as prompt and answer.

    A text with the generation prompt of the reward model's chat template is a conversation. Its last answer is closed
    as the template closes it, wherever the client's text ends. Any other text is plain: it is read as `RewardScorer`
    reads text, with EOS. Padding tokens around a text, a BOS before it and an EOS after it are not read twice.
    """

    def __init__(self, scorer: LocalScorer):
        self.scorer, self.tokenizer = scorer, scorer.tokenizer
        self._generation_prompt = self._find_generation_prompt()
        self._has_warned = False

    def encode(self, text: str) -> list[int]:
        """The tokens of a whole text, prompt and answer."""
        text = self._without(text, self.tokenizer.pad_token)
        if self._generation_prompt is not None:
            prompt, opening, answer = text.rpartition(self._generation_prompt)
            if opening:
                whole = prompt + render_answer(self.tokenizer, self._without_end(answer))
                return self.tokenize(whole, add_special_tokens=False)
            self._warn_of_plain_text(text)
        bos = self.tokenizer.bos_token
        text = text.removeprefix(bos) if bos else text
        return self.scorer.encode(None, self._without_end(text), {})

    def tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The tokens of a text without changes; a BOS that it begins with is not added again."""
        bos = self.tokenizer.bos_token
        try:
            ids = self.tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        except (TypeError, UnicodeEncodeError):
            refuse_half_characters(text, "The text")
            raise
        if bos and text.startswith(bos) and ids[:2] == [self.tokenizer.bos_token_id] * 2:
            return ids[1:]
        return ids

    def _find_generation_prompt(self) -> str | None:
        if not getattr(self.tokenizer, "chat_template", None):
            return None
        answer = [{"role": "assistant", "content": "the answer"}]
        try:
            prompt = generation_prompt_of(self.tokenizer)
            closed = apply_template(self.tokenizer, PROBE)
            is_regular = apply_template(self.tokenizer, PROBE + answer) == closed + render_answer(
                self.tokenizer, "the answer"
            )
        except TemplateError:
            return None
        return prompt if is_regular else None

    def _without_end(self, text: str) -> str:
        eos = self.tokenizer.eos_token
        return text.removesuffix(eos) if eos else text

    @staticmethod
    def _without(text: str, token: str | None) -> str:
        while token and text.startswith(token):
            text = text.removeprefix(token)
        while token and text.endswith(token):
            text = text.removesuffix(token)
        return text

    def _warn_of_plain_text(self, text: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                f"The text beginning {text[:60]!r} has no {self._generation_prompt!r} of the reward model's chat "
                "template, and is read as plain text (warned once). Render prompts with the reward model's template, "
                "or send messages."
            )
