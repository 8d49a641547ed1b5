"""Reward models on servers: export of a trained one, and requests and answers in the formats of vLLM's endpoints.

A server must read the text that training read. Four things differ from server to server and are handled here: the chat
template, special tokens added twice, a sigmoid on the reward, and the token that is scored.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .control_tokens import SANITIZE
from .formatting import RewardFormatter, is_messages, normal_text, template_kwargs
from .raw_reward import answer_with_raw_reward
from .reloading import require_same_when_reloaded
from .scorer import RewardScorer

logger = logging.getLogger(__name__)

ENDPOINTS = ("classify", "pooling")
FORMS = ("tokens", "text", "messages")


def export_reward_model(scorer: RewardScorer, folder: str) -> None:
    """Write a reward model as one folder that servers load: merged, with tokenizer and chat template.

    The config says `problem_type: regression`, so that transformers' pipeline and vLLM return the raw reward
    (otherwise both apply a sigmoid for a model with one output).

    Args:
        scorer: the model; an adapter is merged into its base model.
        folder: where to write.

    Raises:
        ReloadError: what was written gives different tokens or rewards than the model in memory.
    """
    model = scorer.model
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    config = model.config
    answer_with_raw_reward(config)
    config.get_text_config().pad_token_id = scorer.tokenizer.pad_token_id
    if scorer.tokenizer.pad_token_id == scorer.tokenizer.eos_token_id:
        logger.warning(
            f"Padding and EOS are the same token ({scorer.tokenizer.pad_token!r}): transformers treats a closing "
            "EOS as padding and reads the reward one token earlier, but a server that scores the last token does "
            "not. Send "
            "token ids (`serving_text(...).ids`), which leave it out."
        )
    model.save_pretrained(folder)
    scorer.tokenizer.save_pretrained(folder)
    require_same_when_reloaded(model, scorer.tokenizer, folder)


@dataclass(frozen=True)
class ServingText:
    """One text to score, in each form that a server may take.

    Args:
        text: what the model reads, after chat template or with EOS.
        ids: its tokens as in training, up to the one that is scored.
        has_special_tokens: whether special tokens (BOS) are in `text` already and must not be added again.
        messages: the conversation, `None` for plain text.
        template_kwargs: what the chat template gets beside the messages (`tools` among it).
    """

    text: str
    ids: list[int]
    has_special_tokens: bool
    messages: list[dict[str, Any]] | None
    template_kwargs: dict[str, Any]


@dataclass(frozen=True)
class TextReader:
    """Formats texts without a model: the tokenizer of a reward model, and its formatter."""

    tokenizer: Any
    formatter: RewardFormatter


def serving_text(scorer: RewardScorer | TextReader, row: dict[str, Any], side: str) -> ServingText:
    """The completion in column `side` of a row, after its `prompt`, if it has one."""
    prompt, completion = normal_text(row.get("prompt")), normal_text(row[side])
    if is_messages(prompt) and prompt and isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    is_conversation = not isinstance(completion, str)
    kwargs = template_kwargs(row) if is_conversation else {}
    ids = scorer.formatter.encode(prompt, completion, **kwargs)
    padding = scorer.tokenizer.pad_token_id
    while len(ids) > 1 and ids[-1] == padding:  # transformers scores the last token that is not padding
        ids = ids[:-1]
    return ServingText(
        text=scorer.formatter.render(prompt, completion, **kwargs).text,
        ids=ids,
        has_special_tokens=is_conversation,
        messages=[*(prompt or []), *completion] if is_conversation else None,
        template_kwargs={key: value for key, value in kwargs.items() if value is not None},
    )


def request_body(
    texts: Sequence[ServingText], endpoint: str, form: str, served_model: str | None = None
) -> dict[str, Any]:
    """Body of a request to vLLM's `/classify` or `/pooling`, without activation.

    Args:
        texts: texts of one kind; exactly one with `form="messages"`.
        endpoint: `classify` or `pooling`.
        form: `tokens` (nothing left to the server), `text`, or `messages` (the server applies the chat template).
        served_model: name under which the server knows the model, if it serves several.

    Raises:
        ValueError: messages asked for from plain text or for several texts at once; texts of two kinds; text whose
            control tokens are to be read as text, in another form than `tokens`.
    """
    body: dict[str, Any] = {"use_activation": False}
    if form != "tokens":
        _refuse_sanitized(texts)
    if form == "messages":
        if len(texts) != 1 or texts[0].messages is None:
            plain = sum(text.messages is None for text in texts)
            raise ValueError(
                f"The form `messages` takes one conversation per request, but there are {len(texts)} texts, {plain} "
                "of them plain. Use `text` or `tokens`."
            )
        body |= {"messages": texts[0].messages, "add_generation_prompt": False, "add_special_tokens": False}
        if texts[0].template_kwargs:
            body["chat_template_kwargs"] = texts[0].template_kwargs
    elif form == "text":
        if len({text.has_special_tokens for text in texts}) > 1:
            raise ValueError(
                "Plain texts and conversations are in one request. Send them separately, or use `tokens`."
            )
        body |= {"input": [text.text for text in texts], "add_special_tokens": not texts[0].has_special_tokens}
    else:
        body["input"] = [text.ids for text in texts]
    if endpoint == "pooling":
        body["task"] = "classify"
    return body if served_model is None else {"model": served_model, **body}


def _refuse_sanitized(texts: Sequence[ServingText]) -> None:
    if any(text.template_kwargs.get(SANITIZE) for text in texts):
        raise ValueError(
            f"With `{SANITIZE}` control tokens that a message spells are read as text, but a server or pipeline "
            "that receives the text cannot know that. Send such a conversation as token ids (the form `tokens`)."
        )


def read_answer(answer: dict[str, Any], endpoint: str, count: int) -> list[float]:
    """Rewards of an answer of vLLM's `/classify` or `/pooling`, in the order of the request.

    Raises:
        ValueError: another number of answers, or answers of several numbers (no reward model).
    """
    key = {"classify": "probs", "pooling": "data"}[endpoint]
    try:
        items = sorted(answer["data"], key=lambda item: item["index"])
        rewards = [item[key] for item in items]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"The answer has no data[].{key} with an index ({type(error).__name__}: {error}), as /{endpoint} gives "
            f"it: {answer!s:.200}"
        ) from None
    if len(rewards) != count or any(len(reward) != 1 for reward in rewards):
        sizes = sorted({len(reward) for reward in rewards})
        raise ValueError(
            f"{count} texts were sent, but {len(rewards)} answers of {sizes} numbers came back; a reward model "
            "answers each text with one number. Is the served model a sequence classifier with one label?"
        )
    return [float(reward[0]) for reward in rewards]


def pipeline_rewards(pipeline, texts: Sequence[ServingText]) -> list[float]:
    """Rewards of transformers' `text-classification` pipeline, one text at a time, without an activation."""
    _refuse_sanitized(texts)
    return [
        pipeline(text.text, function_to_apply="none", top_k=None, add_special_tokens=not text.has_special_tokens)[0][
            "score"
        ]
        for text in texts
    ]
