"""The padding token of the result: sequence classifiers of transformers read before the padding at a row's end."""

from __future__ import annotations

from typing import Any

from ..scoring.formatting import RewardFormatter

# Named so in the vocabularies of published models; no text spells them.
_KNOWN = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]")
_NEW = "<|pad|>"
QUESTIONS = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Explain in two sentences why the sky is blue, and why it is red in the evening."}],
)
ANSWERS = ("Paris.", "Air scatters blue light more than red light. In the evening the way through the air is longer.")


def settle_padding(tokenizer: Any, reads_mask: bool) -> str | None:
    """Give the tokenizer a padding token with which the result scores the same token as the original.

    An original that uses the attention mask scores a closing EOS. Where EOS is the padding too, a sequence classifier
    would skip it as padding and score one token earlier, so padding gets a token of its own.

    Args:
        tokenizer: changed in place; it may have one more token afterwards.
        reads_mask: whether the original uses the attention mask. Otherwise padding stays what it is.

    Returns:
        What was done, for the user; `None` if nothing.
    """
    old = tokenizer.pad_token
    if old is not None and (not reads_mask or not _is_read(tokenizer)):
        return None
    vocabulary = tokenizer.get_vocab()
    taken = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token, old}
    token = next((each for each in _KNOWN if each in vocabulary and each not in taken), _NEW)
    tokenizer.add_special_tokens({"pad_token": token})
    reason = "there was none" if old is None else f"{old!r} is read as part of texts, where it closes them"
    return f"{token!r}{'' if token in vocabulary else ' (added to the vocabulary)'}, since {reason}"


def _is_read(tokenizer: Any) -> bool:
    """Whether the padding token is EOS, or in a rendered conversation."""
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        return True
    return any(tokenizer.pad_token_id in row for row in conversations(tokenizer))


def conversations(tokenizer: Any) -> list[list[int]]:
    """Tokens of conversations as they are scored; none without a chat template."""
    if not tokenizer.chat_template:
        return []
    formatter = RewardFormatter(tokenizer)
    pairs = zip(QUESTIONS, ANSWERS, strict=True)
    return [formatter.encode(prompt, [{"role": "assistant", "content": answer}]) for prompt, answer in pairs]


def plain_texts(tokenizer: Any) -> list[list[int]]:
    """Tokens of texts as they are scored, with EOS at the end."""
    formatter = RewardFormatter(tokenizer)
    prompts = ("Question: why is the sky blue? Answer: ", "", "Translate, please:\n\n")
    completions = (
        "Air scatters blue light.",
        "Yes.",
        "naïve é, 漢字 and 🙂\tare characters, and this is a longer text.",
    )
    return [formatter.encode(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
