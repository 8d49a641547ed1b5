"""Compares what a model server reports with what a caller expects: names, context, vocabulary."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field

from .servers import BadAnswerError, ModelServer, RequestRefusedError

logger = logging.getLogger(__name__)

OWNER = "interdistill"  # what `interdistill serve` reports as the owner of its model

# Text that vocabularies split differently: scripts, digits, spaces, markup.
PROBE = "Où est-ce? 価格は 3,14€ (x == y)\n\tHello, world! naïve Привет 👋🏽 0123456789 <b>&amp;</b>"
_SPREAD, _ADDED = 200, 1000  # tokens of the vocabulary that are compared, and those added to it
_USE_VLLM = "The plain OpenAI API does not have it. Use a vLLM server (`vllm serve MODEL`)."


@dataclass(frozen=True)
class ServedModel:
    """A model of a server.

    Args:
        name: by which it is served. max_length: the most tokens that it reads, `None` if the server does not say.
        owner: what serves it, such as `vllm`, or `OWNER` for `interdistill serve`; `None` if the server does not say.
        root: its folder or Hub name on the server; `None` if the server does not say.
        digest: of its weights and its tokenizer; `None` if the server does not say, as vLLM. vLLM's `created` is the
            time of the answer.
    """

    name: str
    max_length: int | None
    owner: str | None
    root: str | None = field(default=None, compare=False)
    digest: str | None = field(default=None, compare=False)


@functools.cache
def warn_of_unknown_weights(model: str, servers: str) -> None:
    """Warn, once in a process, of a job whose results another model behind the same name would continue."""
    logger.warning(
        f"{servers} does not tell which weights it has of {model!r}, so a job that resumes continues with whatever is "
        "behind that name. Write to another output after the model has changed."
    )


async def find_served_model(server: ModelServer, model: str | None) -> ServedModel:
    """What a server reports about a model.

    Args:
        model: its name; `None` for the only one that the server has.

    Raises:
        ValueError: the server has no model of that name, or several for `None`. ServerError: there is no server, or it
            lists no models.
    """
    try:
        answer = await server.get("/v1/models", retries=min(1, server.retries))
    except RequestRefusedError as error:
        if error.status not in (404, 405):
            raise
        raise BadAnswerError(_no_models(server, f" ({error.status}: {error.reason})")) from error
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or not all(isinstance(each, dict) for each in data):
        raise BadAnswerError(_no_models(server))
    models = {str(each.get("id")): each for each in data}
    name = next(iter(models)) if model is None and len(models) == 1 else model
    if name is None or name not in models:
        shown = f"has no model {model!r}; it serves" if model is not None else "has no single model; it serves"
        raise ValueError(
            f"The server {server.url} {shown} {', '.join(map(repr, models)) or 'none'}. Pass one of these names, or "
            "start the server with the one wanted (`--served-model-name`)."
        )
    keys = ("max_model_len", "owned_by", "root", "digest")
    return ServedModel(name, *(models[name].get(key) for key in keys))


def _no_models(server: ModelServer, reason: str = "") -> str:
    return f"{server.url}/v1/models lists no models{reason}, so this is not a model server. Correct the address."


async def check_vocabulary(server: ModelServer, model: str, tokenizer) -> None:
    """Raise `ValueError` if a server tokenizes differently than a tokenizer, or has no `/tokenize`."""
    spread = range(0, len(tokenizer), max(1, len(tokenizer) // _SPREAD))
    added = list(tokenizer.get_added_vocab())[:_ADDED]
    text = " ".join([PROBE, *tokenizer.batch_decode([[token] for token in spread]), *added])
    ours = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    try:
        answer = await server.post("/tokenize", {"model": model, "prompt": text, "add_special_tokens": False})
    except RequestRefusedError as error:
        raise ValueError(
            f"The server {server.url} does not answer `/tokenize` ({error.status}: {error.reason}), so its vocabulary "
            f"cannot be compared with the tokenizer's. {_USE_VLLM}"
        ) from error
    theirs = answer.get("tokens") if isinstance(answer, dict) else None
    if not isinstance(theirs, list):
        raise ValueError(f"{server.url}/tokenize answers no token ids, but {answer!s:.100}. {_USE_VLLM}")
    if theirs != ours:
        place = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), len(ours))
        raise ValueError(
            f"The tokenizer is not that of {model!r} on {server.url}: of a test text, token {place} is "
            f"{(*ours, None)[min(place, len(ours))]} here and {(*theirs, None)[min(place, len(theirs))]} there "
            f"({len(ours)} and {len(theirs)} tokens). Pass the tokenizer of the served model."
        )
