"""Conversations that were rendered before they came here: where the answer begins, and how training closes it."""

from __future__ import annotations

PROBE = [
    {"role": "user", "content": "a question"},
    {"role": "assistant", "content": "an answer"},
    {"role": "user", "content": "another question"},
]


def apply_template(tokenizer, messages: list[dict], **kwargs) -> str:
    """The text that the chat template makes of messages."""
    return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)


def generation_prompt_of(tokenizer) -> str | None:
    """What the chat template writes before an answer; `None` if it writes nothing, or changes what came before."""
    closed, opened = apply_template(tokenizer, PROBE), apply_template(tokenizer, PROBE, add_generation_prompt=True)
    return (opened.removeprefix(closed) or None) if opened.startswith(closed) else None


def render_answer(tokenizer, answer: str) -> str:
    """The assistant's message as the chat template writes it after a prompt, from its header to its end.

    Args:
        answer: the text after the generation prompt, with or without (all of) what closes a message.
    """
    closed = apply_template(tokenizer, PROBE)
    end = apply_template(tokenizer, [*PROBE, {"role": "assistant", "content": "QQ"}]).rpartition("QQ")[2]
    for written in (end, end.rstrip()):  # an end of turn that is not EOS
        answer = answer.removesuffix(written)
    return apply_template(tokenizer, [*PROBE, {"role": "assistant", "content": answer}]).removeprefix(closed)
