"""Many searches in lock-step: their requests are gathered into few forward passes.

A round has three parts. Searches that need tokens advance together, one token a forward pass, until most of them wait
for a verdict. Then one scorer call judges the texts of those, and one encoder call embeds them. The others do not wait
for a long expansion, nor does it run alone: they meet it again in the next round.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..config import RainConfig
from ..kv_cache.factory import build_cache
from ..results.records import RainRecord, record_tree
from ..scorers.base import Scorer
from ..scorers.score_cache import ScoreCache, ScoreRequest
from ..search.requests import Commit, Decode, Embed, Judge
from ..search.search import PromptSearch
from .model_runner import Reader, RowState
from .sampler import stream_key
from .scheduler import DecodeTask
from .stopping import StopChecker, StopConditions

_STILL_DECODING = 0.5  # share of the searches in flight that a round leaves behind at most
_AHEAD, _AHEAD_ON_CPU = (48, 16), (16, 3)  # works that may ride along with all prompts, and with each at least


def default_num_speculative(device_type: str, prompts: int) -> int:
    """`num_speculative` of each of so many prompts in flight, where the user gave none."""
    together, least = _AHEAD_ON_CPU if device_type == "cpu" else _AHEAD
    return max(least, together // prompts)


@dataclass(frozen=True)
class Prompt:
    """A prompt to search from.

    Args:
        ids: token ids without padding.
        shown: what scorers see: text or messages.
        stop: what ends the generation.
        occurrence: number among equal prompts, for a random stream of its own; counted by the engine if not given.
    """

    ids: tuple[int, ...]
    shown: Any
    stop: StopConditions
    occurrence: int | None = None


@dataclass(eq=False)
class EngineRequest:
    """A prompt in the engine."""

    number: int
    prompt: Prompt
    key: int
    search: PromptSearch
    state: RowState | None = None
    steps: Any = None
    waiting: Any = None
    costs: Counter = field(default_factory=Counter)
    started: float = 0.0
    seconds: float = 0.0
    is_finished: bool = False


class RainEngine:
    """Runs searches.

    Args:
        model: a causal LM. tokenizer: its tokenizer.
        config: the constants.
        scorer: a bound scorer (see `scorers.py`).
        embedder: `embedder(texts) -> (texts, dimensions)` array, or `None`.

    Attributes:
        totals: forward passes, tokens and judge calls of all prompts together; a pass that serves many counts once.
    """

    def __init__(self, model, tokenizer, config: RainConfig, scorer: Scorer, embedder: Callable | None = None):
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.embedder = embedder
        self.totals: Counter = Counter()
        self.verdicts = ScoreCache(scorer)
        self.requests: list[EngineRequest] = []
        self._queue: deque[EngineRequest] = deque()
        self._active: list[EngineRequest] = []
        self._tasks: dict[EngineRequest, tuple] = {}  # decode tasks under way, and what they ask
        self._answers: dict[EngineRequest, tuple] = {}
        self._commits: list[tuple[int, tuple[int, ...]]] = []

    def start(self, prompts: Sequence[Prompt], seed: int) -> None:
        """Take prompts in; equal ones get random streams of their own."""
        rows = max(1, min(len(prompts), self.config.max_batch_size))
        if self.config.num_speculative is None:
            self.config = replace(self.config, num_speculative=default_num_speculative(self.model.device.type, rows))
        seen: Counter = Counter()
        for number, prompt in enumerate(prompts):
            occurrence = seen[prompt.ids] if prompt.occurrence is None else prompt.occurrence
            key = stream_key(seed, prompt.ids, occurrence)
            seen[prompt.ids] += 1
            rules = StopChecker(prompt.ids, self.tokenizer, self.config, prompt.stop)
            search = PromptSearch(self.config, rules, self.embedder is not None)
            self.requests.append(EngineRequest(number, prompt, key, search))
            self.verdicts.open(prompt.shown)
        self._queue.extend(self.requests)
        self.cache = build_cache(self.model, rows, self.config.cuda_graphs)
        self.reader = Reader(self.cache, self.config)
        self._rows = list(range(self.cache.rows))[::-1]

    @property
    def is_finished(self) -> bool:
        """Whether every prompt's text has ended."""
        return not self._queue and not self._active

    def step(self) -> list[tuple[int, tuple[int, ...]]]:
        """Advance at least half of the searches in flight by a verdict; commits come as `(prompt number, tokens)`."""
        self._commits = []
        self._admit()
        self._decode()
        self._judge()
        self._embed()
        return self._commits

    def _admit(self) -> None:
        while self._queue and self._rows:
            job = self._queue.popleft()
            job.state = RowState(self._rows.pop(), job.search.rules, job.key)
            job.state.open()
            job.started = time.perf_counter()
            job.steps = job.search.run()
            self._active.append(job)
            self._advance(job, None)

    def _advance(self, job: EngineRequest, answer) -> None:
        """Send an answer and take the search to its next request that needs work."""
        try:
            request = job.steps.send(answer)
            while isinstance(request, Commit):
                job.state.prune(self.cache, request.node)
                self._commits.append((job.number, request.node.tokens))
                request = job.steps.send(None)
            job.waiting = request
        except StopIteration:
            self._close(job)

    def _close(self, job: EngineRequest) -> None:
        job.waiting = None
        job.is_finished = True
        self._collect(job)
        self.verdicts.close(job.prompt.shown)
        self.cache.clear(job.state.row)
        self._rows.append(job.state.row)
        job.state = None
        self._active.remove(job)

    def _collect(self, job: EngineRequest) -> None:
        """Move a row's costs into its job."""
        passes, tokens = self.cache.take_row(job.state.row)
        job.costs.update(forward_passes=passes, forward_tokens=tokens)
        job.seconds = time.perf_counter() - job.started

    def _decode(self) -> None:
        """Run decode requests, and those that follow from them, until few enough searches still need tokens."""
        tasks = self._tasks
        while True:
            for job in self._active:
                if isinstance(job.waiting, Decode) and job not in tasks:
                    task = DecodeTask(job.state, job.waiting, self.config, self.cache).run()
                    tasks[job] = (task, self._step(job, task, None))
            finished = [job for job, (_, asks) in tasks.items() if asks is None]
            for job in finished:
                del tasks[job]
                self._advance(job, self._answers.pop(job))
            if finished:
                continue
            if len(tasks) <= _STILL_DECODING * len(self._active):
                return
            self._pass(tasks)

    def _pass(self, tasks: dict) -> None:
        """One forward pass for all tasks."""
        states = {job.state.row: job.state for job in tasks}
        before = self.cache.forward_passes, self.cache.forward_tokens
        told = self.reader.read([ask for _, asks in tasks.values() for ask in asks], states)
        self.totals["forward_passes"] += self.cache.forward_passes - before[0]
        self.totals["forward_tokens"] += self.cache.forward_tokens - before[1]
        start = 0
        for job, (task, asks) in list(tasks.items()):
            stop = start + len(asks)
            tasks[job] = (task, self._step(job, task, told[start:stop]))
            start = stop

    def _step(self, job: EngineRequest, task, told) -> list | None:
        """Send answers to a task; its next asks, or `None` when it is finished."""
        try:
            return task.send(told)
        except StopIteration as stop:
            self._answers[job] = stop.value
            return None

    def _judge(self) -> None:
        jobs = [job for job in self._active if isinstance(job.waiting, Judge)]
        asked = [ScoreRequest(job, job.prompt.shown, job.waiting.completion) for job in jobs]
        session = self.verdicts.judge(asked, self._rolled_out(jobs))
        if session is not None:
            passes, tokens = session.costs.forward_passes, session.costs.total_tokens
            for question, own in zip(session.questions, session.costs.tokens, strict=True):
                question.owner.costs.update(judge_calls=1, forward_tokens=own)
            for job in {question.owner: None for question in session.questions}:
                job.costs.update(forward_passes=passes)
            self.totals.update(judge_calls=len(session.questions), forward_passes=passes, forward_tokens=tokens)
        for job, question in zip(jobs, asked, strict=True):
            self._advance(job, self.verdicts.of(question))

    @staticmethod
    def _rolled_out(jobs: Sequence[EngineRequest]) -> Iterator[ScoreRequest]:
        """Texts with rollouts that were decoded ahead: their verdicts will probably be asked for."""
        for job in jobs:
            for tokens in job.state.rollouts():
                yield ScoreRequest(job, job.prompt.shown, job.search.rules.completion(tokens))

    def _embed(self) -> None:
        jobs = [job for job in self._active if isinstance(job.waiting, Embed)]
        texts = list(dict.fromkeys(text for job in jobs for text in job.waiting.texts))
        if not texts:
            return
        vectors = dict(zip(texts, self.embedder(texts), strict=True))
        for job in jobs:
            self._advance(job, [vectors[text] for text in job.waiting.texts])

    def take_finished(self) -> list[tuple[int, RainRecord]]:
        """Numbers and records of prompts that have ended since the last call; their trees are let go."""
        taken = []
        for job in [job for job in self.requests if job.is_finished]:
            taken.append((job.number, self._record(job)))
            self.requests.remove(job)
            job.search.tree.release()
        return taken

    def records(self) -> list[RainRecord]:
        """One record a prompt, finished or not, in the order given."""
        return [self._record(job) for job in self.requests]

    def _record(self, job: EngineRequest) -> RainRecord:
        search = job.search
        if job.state is not None:
            self._collect(job)
        stats = {
            "forward_passes": job.costs["forward_passes"],
            "forward_tokens": job.costs["forward_tokens"],
            "judge_calls": job.costs["judge_calls"],
            "iterations": search.iterations,
            "rewinds": sum(search.rewinds.values()),
            "committed_tokens": len(search.committed),
            "seconds": job.seconds,
        }
        shown = job.prompt.shown
        tree = record_tree(search, shown if isinstance(shown, str) else repr(shown))
        reason = search.rules.finish_reason(search.committed) if job.is_finished else "unfinished"
        return RainRecord(tree, stats, list(search.committed), tree.completion, reason or "unfinished")
