"""Many searches in lock-step: their requests are gathered into few forward passes.

A step has three parts. Searches that need tokens advance together, one token in each forward pass, until most of them
wait for a score. Then one scorer call scores the texts of those, and one encoder call embeds them. The others do not
wait for a long expansion, nor does it run alone: they share passes with it again in the next step.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...utils.random_streams import stream_key
from ..config import RainConfig
from ..kv_cache.factory import build_cache
from ..results.records import RainRecord, record_search
from ..scorers.base import Scorer, ScorerError
from ..scorers.embedder import as_vectors
from ..scorers.score_cache import ScoreCache, ScoreRequest
from ..search.guided import Search, build_search
from ..search.requests import Commit, Decode, Embed, Judge
from .model_runner import ModelRunner
from .request_state import RequestState
from .scheduler import RequestScheduler
from .steps import RunningSteps
from .stopping import StopChecker, StopConditions

_STILL_DECODING = 0.5  # share of the searches in flight that a step leaves behind at most
_SPECULATIVE, _SPECULATIVE_ON_CPU = (48, 16), (16, 3)  # speculative jobs of all prompts, and of each at least


def default_num_speculative(device_type: str, prompts: int) -> int:
    """`num_speculative` of each of so many prompts in flight, where the user gave none."""
    together, least = _SPECULATIVE_ON_CPU if device_type == "cpu" else _SPECULATIVE
    return max(least, together // prompts)


@dataclass(frozen=True)
class Prompt:
    """A prompt to search from.

    Args:
        ids: token ids without padding.
        shown: what scorers see: text or messages.
        stop: what ends the generation.
        occurrence: number among equal prompts, for a random stream of its own; counted by the engine if not given.
        columns: see `Exchange`.
    """

    ids: tuple[int, ...]
    shown: Any
    stop: StopConditions
    occurrence: int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class EngineRequest:
    """A prompt in the engine: its search, and what the search waits for."""

    number: int
    prompt: Prompt
    key: int
    search: Search
    running: RequestState | None = None
    steps: Any = None
    waiting: Any = None
    costs: Counter = field(default_factory=Counter)
    started: float = 0.0
    seconds: float = 0.0
    is_finished: bool = False
    error: str | None = None

    @property
    def state(self) -> RequestState:
        """Its decoding state; raises `RuntimeError` unless it is in flight."""
        if self.running is None:
            raise RuntimeError(f"Request {self.number} is not in flight: it waits for a row or is finished.")
        return self.running


class RainEngine:
    """Runs searches.

    Args:
        model: a causal LM. tokenizer: its tokenizer.
        config: the constants.
        scorer: a bound scorer.
        embedder: `embedder(texts) -> (texts, dimensions)` array, or `None`.
        isolates_errors: a prompt that cannot be scored ends alone, with an error in its record; else `step` raises it.

    Attributes:
        totals: forward passes, tokens and judge calls of all prompts together; a pass that serves many counts once.
    """

    def __init__(
        self,
        model,
        tokenizer,
        config: RainConfig,
        scorer: Scorer,
        embedder: Callable | None = None,
        *,
        isolates_errors: bool = False,
    ):
        self.isolates_errors = isolates_errors
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.embedder = embedder
        self.totals: Counter = Counter()
        self.scores = ScoreCache(scorer)
        self.requests: list[EngineRequest] = []
        self._queue: deque[EngineRequest] = deque()
        self._active: list[EngineRequest] = []
        self._decoding: dict[EngineRequest, RunningSteps] = {}
        self._commits: list[tuple[int, tuple[int, ...]]] = []

    def start(self, prompts: Sequence[Prompt], seed: int) -> None:
        """Queue prompts; equal ones get random streams of their own."""
        self.scores.scorer.start_search()
        rows = max(1, min(len(prompts), self.config.max_batch_size))
        if self.config.num_speculative is None and self.config.strategy == "rain":
            number = default_num_speculative(self.model.device.type, rows)
            self.config = replace(self.config, num_speculative=number)
        seen: Counter = Counter()
        for number, prompt in enumerate(prompts):
            occurrence = seen[prompt.ids] if prompt.occurrence is None else prompt.occurrence
            key = stream_key(seed, prompt.ids, occurrence)
            seen[prompt.ids] += 1
            rules = StopChecker(prompt.ids, self.tokenizer, self.config, prompt.stop)
            search = build_search(self.config, rules, self.embedder is not None, key)
            self.requests.append(EngineRequest(number, prompt, key, search))
            self.scores.acquire(prompt.shown, prompt.columns)
        self._queue.extend(self.requests)
        self.cache = build_cache(self.model, rows, self.config.cuda_graphs)
        self.model_runner = ModelRunner(self.cache, self.config)
        self._free_rows = list(range(self.cache.rows))[::-1]

    @property
    def is_finished(self) -> bool:
        """Whether every prompt's text has ended."""
        return not self._queue and not self._active

    @property
    def iterations(self) -> int:
        """Iterations of the searches in flight."""
        return sum(request.search.iterations for request in self._active)

    def step(self) -> list[tuple[int, tuple[int, ...]]]:
        """Advance at least half of the searches in flight by a score; commits come as `(prompt number, tokens)`."""
        self._commits = []
        self._admit()
        self._decode()
        self._score()
        self._embed()
        return self._commits

    def _admit(self) -> None:
        while self._queue and self._free_rows:
            request = self._queue.popleft()
            request.running = RequestState(self._free_rows.pop(), request.search.rules, request.key)
            request.started = time.perf_counter()
            request.steps = request.search.run()
            self._active.append(request)
            self._advance(request, None)

    def _advance(self, request: EngineRequest, answer) -> None:
        """Send an answer and take the search to its next request that needs work."""
        try:
            waiting = request.steps.send(answer)
            while isinstance(waiting, Commit):
                request.state.prune(self.cache, waiting.node)
                self._commits.append((request.number, waiting.node.tokens))
                waiting = request.steps.send(None)
            request.waiting = waiting
        except StopIteration:
            self._finish(request)

    def _finish(self, request: EngineRequest) -> None:
        request.waiting = None
        request.is_finished = True
        self._collect_costs(request)
        self.scores.release(request.prompt.shown, request.prompt.columns)
        self.cache.free_row(request.state.row)
        self._free_rows.append(request.state.row)
        request.running = None
        self._active.remove(request)

    def _collect_costs(self, request: EngineRequest) -> None:
        """Add a row's costs to its request's."""
        passes, tokens = self.cache.pop_row_counts(request.state.row)
        request.costs.update(forward_passes=passes, forward_tokens=tokens)
        request.seconds = time.perf_counter() - request.started

    def _decode(self) -> None:
        """Run decode requests, and those that follow from them, until few enough searches still need tokens."""
        decoding = self._decoding
        while True:
            for request in self._active:
                if isinstance(request.waiting, Decode) and request not in decoding:
                    scheduler = RequestScheduler(request.state, request.waiting, self.config, self.cache)
                    decoding[request] = RunningSteps(scheduler.run())
            finished = [request for request, each in decoding.items() if each.is_finished]
            for request in finished:
                self._advance(request, decoding.pop(request).result)
            if finished:
                continue
            if len(decoding) <= _STILL_DECODING * len(self._active):
                return
            self._forward()

    def _forward(self) -> None:
        """One forward pass for all searches that need tokens."""
        passes, tokens = self.cache.forward_passes, self.cache.forward_tokens
        inputs = [each for decoding in self._decoding.values() for each in decoding.inputs]
        processors = {request.state.row: request.prompt.stop.processors for request in self._decoding}
        outputs = self.model_runner.forward(inputs, processors)
        self.totals["forward_passes"] += self.cache.forward_passes - passes
        self.totals["forward_tokens"] += self.cache.forward_tokens - tokens
        for decoding in self._decoding.values():
            decoding.advance(outputs)

    def _score(self) -> None:
        waiting = [request for request in self._active if isinstance(request.waiting, Judge)]
        self._score_or_isolate(waiting, self._speculative_texts(waiting))

    def _score_or_isolate(self, waiting: Sequence[EngineRequest], speculative: Iterable[ScoreRequest] = ()) -> None:
        try:
            self._score_together(waiting, speculative)
        except ScorerError as error:
            if not self.isolates_errors:
                raise
            if len(waiting) == 1:
                return self._fail(waiting[0], error)
            for request in waiting:
                self._score_or_isolate([request])

    def _fail(self, request: EngineRequest, error: ScorerError) -> None:
        """End a search early."""
        request.error = str(error)
        request.steps.close()
        self._finish(request)

    def _score_together(self, waiting: Sequence[EngineRequest], speculative: Iterable[ScoreRequest]) -> None:
        """Score what searches wait for, in one call, and advance them."""
        asked = [_score_request(each, text) for each in waiting for text in each.waiting.completions]
        batch = self.scores.score(asked, speculative)
        if batch is not None:
            passes, tokens = batch.costs.forward_passes, batch.costs.total_tokens
            for each, own in zip(batch.requests, batch.costs.tokens, strict=True):
                each.owner.costs.update(judge_calls=1, forward_tokens=own)
            for request in {each.owner: None for each in batch.requests}:
                request.costs.update(forward_passes=passes)
            self.totals.update(judge_calls=len(batch.requests), forward_passes=passes, forward_tokens=tokens)
        values = iter([self.scores.value_of(each) for each in asked])
        for request in waiting:
            self._advance(request, [next(values) for _ in request.waiting.completions])

    @staticmethod
    def _speculative_texts(requests: Sequence[EngineRequest]) -> Iterator[ScoreRequest]:
        """Texts with speculative rollouts: their scores will probably be asked for."""
        for request in requests:
            for tokens in request.state.finished_rollouts():
                yield _score_request(request, request.search.rules.completion(tokens))

    def _embed(self) -> None:
        waiting = [request for request in self._active if isinstance(request.waiting, Embed)]
        texts = list(dict.fromkeys(text for request in waiting for text in request.waiting.texts))
        if not texts:
            return
        given = self.embedder(texts)  # type: ignore[misc]  # searches ask only then
        vectors = dict(zip(texts, as_vectors(given, texts), strict=True))
        for request in waiting:
            self._advance(request, [vectors[text] for text in request.waiting.texts])

    def take_finished(self) -> list[tuple[int, RainRecord]]:
        """Numbers and records of prompts that have ended since the last call; their trees are let go."""
        taken = []
        for request in [request for request in self.requests if request.is_finished]:
            taken.append((request.number, self._record(request)))
            self.requests.remove(request)
            request.search.tree.release()
        return taken

    def records(self) -> list[RainRecord]:
        """One record for each prompt, finished or not, in the order given."""
        return [self._record(request) for request in self.requests]

    def _record(self, request: EngineRequest) -> RainRecord:
        search = request.search
        if request.running is not None:
            self._collect_costs(request)
        return record_search(
            search,
            request.prompt.shown,
            request.costs,
            request.seconds,
            is_finished=request.is_finished,
            error=request.error,
        )


def _score_request(request: EngineRequest, completion: str) -> ScoreRequest:
    return ScoreRequest(request, request.prompt.shown, completion, request.prompt.columns)
