"""A server on loopback that answers as vLLM does, with a tiny transformers model, and that fails on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

_PARAMETERS = {
    *("model", "prompt", "max_tokens", "n", "logprobs", "return_token_ids", "return_tokens_as_token_ids"),
    *("ignore_eos", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop", "stop_token_ids"),
    "allowed_token_ids",
}
_MOST_STOP_STRINGS = 4  # the default of VLLM_MAX_STOP_STRINGS


class RefusalError(Exception):
    """An answer with status 400."""


class VllmLike:
    """What vLLM answers.

    Args:
        model: a causal LM, or `None`. tokenizer: its own. name: by which it is served.
        reward_model: a sequence classifier for `/classify`, or `None`.
        max_logprobs, max_length: the server's `--max-logprobs` and `--max-model-len`. A request for more tokens than
            are left of the latter is refused.
        max_stop_tokens: the most `stop_token_ids` of a request, its `VLLM_MAX_STOP_TOKEN_IDS`; `None` for any number.
        is_processed: `--logprobs-mode processed_logprobs`.
        fault: called with the path and the body before each answer; may raise `RefusalError`, or return what to answer
            instead (`(status, content)`), or `"cut"`.

    Attributes:
        root: what the server tells as the model's folder.
        requests: paths and bodies, in order. keys: the `Authorization` of each.
    """

    def __init__(
        self,
        model,
        tokenizer,
        name: str = "lm",
        *,
        reward_model=None,
        max_logprobs: int = 20,
        max_length: int = 512,
        max_stop_tokens: int | None = None,
        is_processed: bool = False,
        fault: Callable[[str, dict], Any] | None = None,
    ):
        self.model, self.tokenizer, self.name, self.reward_model = model, tokenizer, name, reward_model
        self.max_logprobs, self.max_length, self.is_processed = max_logprobs, max_length, is_processed
        self.max_stop_tokens, self.fault = max_stop_tokens, fault
        self.root: str | None = None
        self.requests: list[tuple[str, dict]] = []
        self.keys: list[str | None] = []
        self._lock = threading.Lock()

    def answer(self, path: str, body: dict | None) -> Any:
        body = body or {}
        self.requests.append((path, body))
        if self.fault is not None and (instead := self.fault(path, body)) is not None:
            return instead
        if path == "/health":
            return 200, ""
        if path == "/v1/models":
            told = {"owned_by": "vllm", "root": self.root, "created": time.time_ns()}
            return 200, {"data": [{"id": self.name, "max_model_len": self.max_length, **told}]}
        if body.get("model") != self.name:
            return 404, {"error": {"message": f"The model `{body.get('model')}` does not exist."}}
        if path == "/tokenize":
            return 200, {"tokens": self.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]}
        if path == "/classify" and self.reward_model is not None:
            return 200, self._classify(body)
        if path == "/v1/completions" and self.model is not None:
            with self._lock:
                return 200, self._complete(body)
        return 404, {"detail": "Not Found"}

    @torch.no_grad()
    def _classify(self, body: dict) -> dict:
        data = []
        for index, ids in enumerate(body["input"]):
            state = self.reward_model.model(torch.tensor([ids])).last_hidden_state[0, -1]
            reward = self.reward_model.score(state)
            data.append({"index": index, "probs": (reward.sigmoid() if body["use_activation"] else reward).tolist()})
        return {"data": data}

    @torch.no_grad()
    def _complete(self, body: dict) -> dict:
        unknown = body.keys() - _PARAMETERS
        assert not unknown, unknown
        asked, prompt = body.get("logprobs"), body["prompt"]
        if asked is not None and asked > self.max_logprobs:
            raise RefusalError(f"Requested sample logprobs of {asked}, which is greater than max: {self.max_logprobs}")
        if len(body.get("stop") or ()) > _MOST_STOP_STRINGS:
            raise RefusalError(f"stop must contain at most {_MOST_STOP_STRINGS} strings")
        limit = body["max_tokens"]
        if len(prompt) + limit > self.max_length:
            raise RefusalError(
                f"This model's maximum context length is {self.max_length} tokens. However, you requested "
                f"{len(prompt) + limit} tokens ({len(prompt)} in the messages, {limit} in the completion)."
            )
        stops = len(body.get("stop_token_ids") or ())
        if self.max_stop_tokens is not None and stops > self.max_stop_tokens:
            raise RefusalError(f"stop_token_ids has {stops} items, more than VLLM_MAX_STOP_TOKEN_IDS.")
        rows = [_Row(body, number) for number in range(body.get("n", 1))]
        while live := [row for row in rows if not row.is_over and len(row.tokens) < limit]:
            ids = torch.tensor([[*prompt, *row.tokens] for row in live])
            logits = self.model(input_ids=ids).logits[:, -1].float()
            for row, each_ids, each in zip(live, ids, logits, strict=True):
                self._advance(row, each_ids, each, body)
        choices = [row.choice(asked, index) for index, row in enumerate(rows)]
        usage = {"prompt_tokens": len(prompt), "completion_tokens": sum(len(row.tokens) for row in rows)}
        return {"choices": choices, "usage": usage}

    def _advance(self, row: _Row, ids: torch.Tensor, logits: torch.Tensor, body: dict) -> None:
        raw = torch.log_softmax(logits, -1)
        seen, penalty = torch.unique(ids), body["repetition_penalty"]
        kept = logits[seen]
        logits[seen] = torch.where(kept > 0, kept / penalty, kept * penalty)
        if body.get("allowed_token_ids"):
            mask = torch.full_like(logits, -torch.inf)
            mask[body["allowed_token_ids"]] = 0
            logits = logits + mask
        if body["temperature"] == 0:
            processed = torch.log_softmax(logits, -1)
            token = int(logits.argmax())
        else:
            processed = torch.log_softmax(_warp(logits, body), -1)
            token = int(torch.multinomial(processed.exp(), 1, generator=row.generator))
        row.add(token, processed if self.is_processed else raw)
        text = self.tokenizer.decode(row.tokens, skip_special_tokens=True)
        has_stop = any(each in text for each in body.get("stop") or ())
        row.is_over = has_stop or token in (body.get("stop_token_ids") or ())


def _warp(logits: torch.Tensor, body: dict) -> torch.Tensor:
    logits = logits / body["temperature"]
    if body["top_k"] > 0:
        logits = logits.masked_fill(logits < logits.topk(body["top_k"]).values[-1], -torch.inf)
    if body["top_p"] < 1:
        values, order = logits.sort(descending=True)
        before = values.softmax(-1).cumsum(-1) - values.softmax(-1)
        logits = logits.index_fill(0, order[before >= body["top_p"]], -torch.inf)
    return logits


class _Row:
    """A completion that grows."""

    def __init__(self, body: dict, number: int):
        self.tokens: list[int] = []
        self.scores: list[torch.Tensor] = []
        self.is_over = False
        seed = body.get("seed")
        self.generator = torch.Generator().manual_seed(seed + number) if seed is not None else None

    def add(self, token: int, scores: torch.Tensor) -> None:
        self.tokens.append(token)
        self.scores.append(scores)

    def choice(self, asked: int | None, index: int) -> dict:
        found = {"index": index, "text": "", "finish_reason": "stop" if self.is_over else "length"}
        found["token_ids"] = self.tokens
        if asked is not None:
            top = []
            for token, scores in zip(self.tokens, self.scores, strict=True):
                ids = {token, *(scores.topk(asked).indices.tolist() if asked else ())}
                top.append({f"token_id:{each}": max(float(scores[each]), -9999.0) for each in ids})
            found["logprobs"] = {"top_logprobs": top}
        return found


@contextmanager
def served(backend: VllmLike, port: int = 0, host: str = "127.0.0.1") -> Iterator[str]:
    """The address of a server with this backend."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self._send(None)

        def do_POST(self):
            self._send(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _send(self, body):
            backend.keys.append(self.headers.get("Authorization"))
            try:
                answer = backend.answer(self.path, body)
            except RefusalError as error:
                answer = 400, {"error": {"message": str(error)}}
            if answer == "cut":  # in the middle of the body
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                self.close_connection = True
                return
            status, content = answer
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request, address):
            pass  # a client that has gone

    server = Server((host, port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def slow(seconds: float) -> Callable[[str, dict], None]:
    """A fault: every completion takes this long."""

    def fault(path: str, body: dict) -> None:
        if path == "/v1/completions":
            time.sleep(seconds)

    return fault


@contextmanager
def all_served(*backends: VllmLike) -> Iterator[list[str]]:
    """The addresses of several servers."""
    with ExitStack() as stack:
        yield [stack.enter_context(served(each)) for each in backends]


def dying_after(count: int, answer: Any, failed: list[str]) -> Callable[[str, dict], Any]:
    """A fault: from a completion on, every request gets this answer; such completions are put in `failed`."""
    seen = [0]

    def fault(path: str, body: dict) -> Any:
        seen[0] += path == "/v1/completions"
        if seen[0] <= count:
            return None
        if path == "/v1/completions":
            failed.append(json.dumps(body, sort_keys=True))
        return answer

    return fault


def switchable() -> tuple[Callable[[str, dict], Any], Callable[[bool], None]]:
    """A fault of a server that is down whenever it is switched so, and the switch."""
    state = {"is_down": False}

    def fault(path: str, body: dict) -> Any:
        return (500, "down") if state["is_down"] else None

    def switch(is_down: bool) -> None:
        state["is_down"] = is_down

    return fault, switch
