"""The formats of requests: from a JSON body to rows of tokens, and from rewards to the answer.

The shapes are those that the clients send and read: OpenRLHF's `get_reward`, slime's `remote_rm`, vLLM's `classify`
(also verl's and SGLang's `v1/classify`), SGLang's own `classify` and `v1/embeddings`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..scoring.checks import as_list
from ..scoring.formatting import template_kwargs
from ..scoring.opening import LocalScorer
from ..utils.fields import nearest_name
from ..utils.served_models import OWNER
from .digest import digest_of_scorer
from .queue import Scored
from .texts import RenderedTexts

_SCORE_KEYS = ("prompts", "completions", "tools", "chat_template_kwargs", "model")
_NO_ACTIVATION = "The answer is the reward itself here, without an activation. Leave it out, or send `false`."


class UnknownModelError(Exception):
    """A request for a model that is not served."""


@dataclass(frozen=True)
class Job:
    """A request that was understood.

    Args:
        count: its rows.
        encode: makes the tokens of each row; raises `ValueError` or `TypeError` for what cannot be scored.
        answer: makes the body of the answer.
    """

    count: int
    encode: Callable[[], list[list[int]]]
    answer: Callable[[Scored], Any]


class Formats:
    """Reads requests for one scorer.

    Args:
        scorer: what scores. model_name: its name in answers, and the only one that requests may ask for.

    Every method takes the body of a request.

    Raises:
        ValueError, TypeError: a body of another shape; the message gives the value, the rule and the fix.
        UnknownModelError: a request for another model.
    """

    def __init__(self, scorer: LocalScorer, model_name: str):
        self.scorer, self.model_name = scorer, model_name
        self.texts = RenderedTexts(scorer)
        self.digest = digest_of_scorer(scorer)

    def score(self, body: Any) -> Job:
        """`{"prompts": [...], "completions": [...]}`, as `RewardScorer` is called; `tools` and
        `chat_template_kwargs` have one entry per row too."""
        body = _object(body)
        for key in body:
            if key not in _SCORE_KEYS:
                raise ValueError(
                    f"Unknown key `{key}`; did you mean `{nearest_name(key, _SCORE_KEYS, cutoff=0.0)}`? The keys are "
                    f"{', '.join(_SCORE_KEYS)}."
                )
        self._check_model(body)
        completions = as_list("completions", _required(body, "completions"))
        prompts = body.get("prompts")
        prompts = [None] * len(completions) if prompts is None else prompts
        names = [key for key in ("tools", "chat_template_kwargs") if body.get(key) is not None]
        columns = {key: as_list(key, body[key]) for key in names}
        for number, kwargs in enumerate(columns.get("chat_template_kwargs", ())):
            _refuse_template(kwargs, f"Row {number}: ")
        return Job(
            len(completions),
            lambda: self.scorer.encode_rows(prompts, completions, **columns),
            lambda scored: {"model": self.model_name, "rewards": scored.rewards, "tokens": scored.lengths},
        )

    def get_reward(self, body: Any) -> Job:
        """OpenRLHF: `{"query": [...], "prompts": [...], "labels": [...]}`, where a query is prompt and answer."""
        queries = _texts("query", _required(_object(body), "query"))
        return Job(
            len(queries),
            lambda: _each_row(self.texts.encode, queries),
            lambda scored: {"rewards": scored.rewards, "scores": scored.rewards},
        )

    def remote_rm(self, body: Any) -> Job:
        """slime: `{"prompt": ..., "response": ..., "label": ...}` of one sample; the answer is a number."""
        body = _object(body)
        prompt, response = _required(body, "prompt"), _required(body, "response")

        def encode() -> list[list[int]]:
            if isinstance(prompt, str) and isinstance(response, str):
                return [self.texts.encode(prompt + response)]
            return self.scorer.encode_rows([prompt], [response])

        return Job(1, encode, lambda scored: scored.rewards[0])

    def classify(self, body: Any) -> Job:
        """vLLM: `input` (text, texts, token ids) or `messages`; SGLang's own, with `text` or `input_ids`."""
        body = _object(body)
        if not {"input", "messages"} & body.keys() and {"text", "input_ids"} & body.keys():
            return self._native(body)
        return self._openai_like(body, self._classified)

    def embeddings(self, body: Any) -> Job:
        """SGLang's `v1/embeddings`, where a reward model's embedding is its reward."""
        return self._openai_like(_object(body), self._embedded)

    def pooling(self, body: Any) -> Job:
        """vLLM's `pooling` with the task `classify`."""
        body = _object(body)
        if body.get("task") not in (None, "classify"):
            raise ValueError(f"`task` is {body['task']!r}, but a reward model can only `classify`. Leave it out.")
        return self._openai_like(body, self._pooled)

    def tokenize(self, body: Any) -> Job:
        """vLLM's `tokenize`: `{"prompt": ..., "add_special_tokens": ...}`; clients compare vocabularies by it."""
        body = _object(body)
        self._check_model(body)
        prompt, adds = _required(body, "prompt"), body.get("add_special_tokens", True)
        if not isinstance(prompt, str) or not isinstance(adds, bool):
            raise ValueError(
                f"`prompt` is {prompt!r:.80} and `add_special_tokens` is {adds!r:.80}, but must be a text, and true "
                "or false. Correct them."
            )
        tokens: list[int] = []

        def encode() -> list[list[int]]:  # in the thread of the queue, which alone uses the tokenizer
            tokens.extend(self.texts.tokenize(prompt, add_special_tokens=adds))
            return []

        limit = self.scorer.max_length
        return Job(0, encode, lambda scored: {"count": len(tokens), "max_model_len": limit, "tokens": tokens})

    def models(self) -> dict[str, Any]:
        """What `v1/models` lists: the one model."""
        model = {
            **{"id": self.model_name, "object": "model", "owned_by": OWNER},
            **{"max_model_len": self.scorer.max_length, "digest": self.digest},
        }
        return {"object": "list", "data": [model]}

    def _openai_like(self, body: dict[str, Any], item: Callable[[int, float], dict[str, Any]]) -> Job:
        self._check_model(body)
        for key in ("use_activation", "activation", "softmax"):
            if body.get(key):
                raise ValueError(f"`{key}` is {body[key]!r}. {_NO_ACTIVATION}")
        if "messages" in body:
            count, encode = 1, self._conversation(body)
        else:
            adds = body.get("add_special_tokens", True)
            if not isinstance(adds, bool):
                raise ValueError(f"`add_special_tokens` is {adds!r:.80}, but must be true or false. Correct it.")
            count, encode = self._inputs("input", _required(body, "input"), adds)
        return Job(count, encode, lambda scored: self._listed(scored, item))

    def _conversation(self, body: dict[str, Any]) -> Callable[[], list[list[int]]]:
        if body.get("chat_template") is not None:
            _refuse_template({"chat_template": body["chat_template"]}, "")
        if body.get("add_generation_prompt"):
            raise ValueError(
                "`add_generation_prompt` is true, but a reward is that of a finished answer. Leave it out."
            )
        row = {"tools": body.get("tools"), "chat_template_kwargs": body.get("chat_template_kwargs")}
        _refuse_template(row["chat_template_kwargs"], "")
        if not isinstance(body["messages"], list):
            raise ValueError(f"`messages` is {body['messages']!r:.80}, but must be a list of messages. Correct it.")
        return lambda: [self.scorer.encode(None, body["messages"], template_kwargs(row))]

    def _inputs(self, name: str, value: Any, adds: bool) -> tuple[int, Callable[[], list[list[int]]]]:
        if isinstance(value, str) or (isinstance(value, list) and value and _is_id(value[0])):
            value = [value]
        if not isinstance(value, list) or not value:
            raise ValueError(
                f"`{name}` is {value!r:.80}, but must be a text, token ids, or a list of texts or of lists of token "
                "ids, with at least one."
            )
        return len(value), lambda: _each_row(lambda entry: self._ids(name, entry, adds), value)

    def _ids(self, name: str, entry: Any, adds_special_tokens: bool) -> list[int]:
        if isinstance(entry, str):
            if not entry:
                raise ValueError("The text is empty. Leave it out.")
            return self.texts.tokenize(entry, add_special_tokens=adds_special_tokens)
        size = self.scorer.vocabulary_size
        if not isinstance(entry, list) or not entry or not all(_is_id(token) and 0 <= token < size for token in entry):
            raise ValueError(
                f"`{name}` holds {entry!r:.80}, but token ids are whole numbers of 0 to {size - 1}, at least one. Use "
                "the model's tokenizer."
            )
        return entry

    def _native(self, body: dict[str, Any]) -> Job:
        name = "text" if body.get("text") is not None else "input_ids"
        value = body[name]
        is_single = isinstance(value, str) or (isinstance(value, list) and bool(value) and _is_id(value[0]))
        count, encode = self._inputs(name, value, True)

        def answer(scored: Scored) -> Any:
            items = [
                {"embedding": [reward], "meta_info": {"id": uuid.uuid4().hex, "prompt_tokens": length}}
                for reward, length in zip(scored.rewards, scored.lengths, strict=True)
            ]
            return items[0] if is_single else items

        return Job(count, encode, answer)

    def _listed(self, scored: Scored, item: Callable[[int, float], dict[str, Any]]) -> dict[str, Any]:
        tokens = sum(scored.lengths)
        return {
            "id": f"classify-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": self.model_name,
            "data": [item(number, reward) for number, reward in enumerate(scored.rewards)],
            "usage": {
                "prompt_tokens": tokens,
                "total_tokens": tokens,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
            },
        }

    def _classified(self, number: int, reward: float) -> dict[str, Any]:
        return {"index": number, "label": "reward", "probs": [reward], "num_classes": 1}

    def _embedded(self, number: int, reward: float) -> dict[str, Any]:
        return {"index": number, "object": "embedding", "embedding": [reward]}

    def _pooled(self, number: int, reward: float) -> dict[str, Any]:
        return {"index": number, "object": "pooling", "data": [reward]}

    def _check_model(self, body: dict[str, Any]) -> None:
        if body.get("model") not in (None, self.model_name):
            raise UnknownModelError(
                f"The model {body['model']!r:.80} is not served here; it is {self.model_name!r}. Ask for this one, or "
                "leave `model` out."
            )


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise ValueError(f"The body is {body!r:.80}, but must be a JSON object. See the formats in the documentation.")
    return body


def _required(body: dict[str, Any], key: str) -> Any:
    if body.get(key) is None:
        near = nearest_name(key, body)
        hint = f" Is `{near}` meant as `{key}`?" if near else ""
        raise ValueError(f"The body has no `{key}`; its keys are {sorted(body)}.{hint} Add it.")
    return body[key]


def _texts(name: str, value: Any) -> list[str]:
    values = as_list(name, value)
    for number, entry in enumerate(values):
        if not isinstance(entry, str) or not entry:
            raise ValueError(f"Row {number}: `{name}` holds {entry!r:.80}, but must hold texts that are not empty.")
    return values


def _each_row(encode: Callable[[Any], list[int]], values: Sequence[Any]) -> list[list[int]]:
    rows = []
    for number, value in enumerate(values):
        try:
            rows.append(encode(value))
        except ValueError as error:
            raise ValueError(f"Row {number}: {error}") from error
    return rows


def _refuse_template(kwargs: Any, where: str) -> None:
    """A chat template is code, and the text must be what training read."""
    try:
        given = template_kwargs({"chat_template_kwargs": kwargs})
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error
    if given.get("chat_template") is not None:
        raise ValueError(f"{where}A request may not have a `chat_template`; the model's own is used. Leave it out.")
