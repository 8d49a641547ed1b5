"""Rows of all requests in one queue, read by one thread in batches of similar lengths."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from ..scoring.opening import LocalScorer
from .metrics import QueueMetrics

logger = logging.getLogger(__name__)

# Padding costs as much as text; a batch of fewer tokens costs little more than one row of it.
_MOST_PADDING, _SMALL_BATCH = 1.15, 512


class QueueFullError(Exception):
    """There is no room for a request now. `retry_after`: seconds after which there probably is."""

    def __init__(self, message: str, retry_after: int):
        super().__init__(message)
        self.retry_after = retry_after


class RequestTooLargeError(Exception):
    """A request that would not fit into the empty queue."""


class ScoringError(RuntimeError):
    """The model failed on a row, or gave no finite number."""


@dataclass(frozen=True)
class Scored:
    """Rewards of the rows of a request, and how many tokens each has."""

    rewards: list[float]
    lengths: list[int]


@dataclass(eq=False)
class _Request:
    count: int
    encode: Callable[[], list[list[int]]]
    future: Future = field(default_factory=Future)
    lengths: list[int] = field(default_factory=list)
    rewards: dict[int, float] = field(default_factory=dict)

    def fail(self, error: BaseException) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def finish_if_complete(self) -> None:
        if len(self.rewards) == self.count and self.future.set_running_or_notify_cancel():
            self.future.set_result(Scored([self.rewards[i] for i in range(self.count)], self.lengths))


@dataclass(frozen=True, eq=False)
class _Row:
    request: _Request
    number: int
    ids: list[int]


class ScoringQueue:
    """Scores requests of several threads with one `RewardScorer`, in batches across requests.

    Encoding and reading happen in one thread, which alone uses tokenizer and model. Each batch holds the row that has
    waited longest and those nearest to it in length, so that no row waits forever and little is padding.

    Args:
        scorer: `batch_size` of it limits the rows of a batch; `max_length` the tokens of a row.
        max_batch_tokens: tokens of a batch with its padding; a longer row is refused.
        max_rows: rows that may wait, over all requests.
        max_wait: seconds to wait for more rows when some have come to the empty queue.

    Raises:
        ValueError: the scorer gives a row different rewards in a batch and alone.
    """

    def __init__(self, scorer: LocalScorer, *, max_batch_tokens: int, max_rows: int, max_wait: float):
        self.scorer, self.max_batch_tokens, self.max_rows, self.max_wait = scorer, max_batch_tokens, max_rows, max_wait
        scorer.max_length = min(scorer.max_length or max_batch_tokens, max_batch_tokens)
        _ = scorer.padding_side  # measured before the first request
        self.metrics = QueueMetrics()
        self._requests: list[_Request] = []
        self._rows: list[_Row] = []
        self._open: set[_Request] = set()  # not answered yet
        self._held = 0  # their rows
        self._rows_a_second = 0.0
        self._is_closing = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are still taken and scored."""
        return self._thread.is_alive() and not self._is_closing

    def submit(self, count: int, encode: Callable[[], list[list[int]]]) -> Future:
        """Put a request into the queue; the future's result is a `Scored`. Cancelling it removes its rows.

        Args:
            count: its rows.
            encode: the tokens of each row; called in the thread of the queue. Its errors become the future's.

        Raises:
            RequestTooLargeError, QueueFullError: no room, ever or now.
        """
        if count > self.max_rows:
            raise RequestTooLargeError(
                f"The request has {count} rows, more than the {self.max_rows} that may wait. Split it."
            )
        request = _Request(count, encode)
        with self._condition:
            if not self.is_alive:
                raise QueueFullError("The server is stopping.", 5)
            if self._held + count > self.max_rows:
                raise QueueFullError(
                    f"{self._held} rows wait, and {self.max_rows} may: there is no room for {count} more. Send them "
                    "again later.",
                    self._retry_after(),
                )
            self._held += count
            self.metrics.waiting_rows.set(self._held)
            self._open.add(request)
            request.future.add_done_callback(lambda _: self._release(request))
            self._requests.append(request)
            self._condition.notify()
        return request.future

    def close(self, timeout: float | None = None) -> None:
        """Take no more requests, finish those that wait, end the thread."""
        with self._condition:
            self._is_closing = True
            self._condition.notify()
        self._thread.join(timeout)

    def _release(self, request: _Request) -> None:
        with self._condition:
            self._open.discard(request)
            self._held -= request.count
            self.metrics.waiting_rows.set(self._held)

    def _retry_after(self) -> int:
        seconds = self._held / self._rows_a_second if self._rows_a_second else 1.0
        return min(max(math.ceil(seconds / 2), 1), 60)

    def _work(self) -> None:
        try:
            while self._wait():
                self._encode_new()
                self._rows = [row for row in self._rows if not row.request.future.done()]
                if self._rows:
                    self._score(self._take_batch())
        except BaseException as error:
            logger.exception("The scoring thread ended.")
            with self._condition:
                self._is_closing = True
                left = list(self._open)
            for request in left:
                request.fail(ScoringError(f"The scoring thread ended: {type(error).__name__}."))

    def _wait(self) -> bool:
        """Wait for rows; `False` when there will be none."""
        with self._condition:
            while not self._requests and not self._rows:
                if self._is_closing:
                    return False
                self._condition.wait()
                if self._requests and not self._is_closing and self.max_wait:
                    self._wait_for_more()
        return True

    def _wait_for_more(self) -> None:
        end = time.monotonic() + self.max_wait
        while sum(request.count for request in self._requests) < self.scorer.batch_size and not self._is_closing:
            left = end - time.monotonic()
            if left <= 0 or not self._condition.wait(left):
                return

    def _encode_new(self) -> None:
        with self._condition:
            requests, self._requests = self._requests, []
        for request in requests:
            if request.future.done():
                continue
            try:
                rows = request.encode()
                for ids in rows:
                    self.scorer.check_length(len(ids))
            except Exception as error:
                request.fail(error)
                continue
            request.lengths = [len(ids) for ids in rows]
            self._rows += [_Row(request, number, ids) for number, ids in enumerate(rows)]
            request.finish_if_complete()  # a request without rows

    def _take_batch(self) -> list[_Row]:
        """The row that has waited longest and those nearest in length, within the limits of a batch."""
        order = sorted(range(len(self._rows)), key=lambda i: len(self._rows[i].ids))
        lengths = [len(self._rows[i].ids) for i in order]
        first = last = order.index(0)
        while True:
            wider = [(first - 1, last)] if first > 0 else []
            wider += [(first, last + 1)] if last + 1 < len(order) else []
            wider = [(low, high) for low, high in wider if self._fits(lengths[low : high + 1])]
            if not wider:
                break
            first, last = min(wider, key=lambda ends: lengths[ends[1]] - lengths[ends[0]])
        taken = set(order[first : last + 1])
        batch = [row for i, row in enumerate(self._rows) if i in taken]
        self._rows = [row for i, row in enumerate(self._rows) if i not in taken]
        return batch

    def _fits(self, lengths: Sequence[int]) -> bool:
        """Whether rows of such lengths, in order, may be one batch."""
        padded = len(lengths) * lengths[-1]
        if len(lengths) > self.scorer.batch_size or padded > self.max_batch_tokens:
            return False
        return padded <= max(_MOST_PADDING * sum(lengths), _SMALL_BATCH)

    def _score(self, batch: Sequence[_Row]) -> None:
        start = time.monotonic()
        try:
            rewards = self.scorer.score_ids([row.ids for row in batch])
        except Exception as error:
            if len(batch) > 1:  # the others are right all the same
                for row in batch:
                    self._score([row])
                return
            logger.exception("A row could not be scored.")
            batch[0].request.fail(ScoringError(f"The model failed on row {batch[0].number}: {error}"))
            return
        seconds = time.monotonic() - start
        self.metrics.count_batch([len(row.ids) for row in batch], seconds)
        rate = len(batch) / max(seconds, 1e-6)
        self._rows_a_second = 0.9 * self._rows_a_second + 0.1 * rate if self._rows_a_second else rate
        for row, reward in zip(batch, rewards, strict=True):
            self._deliver(row, reward)

    def _deliver(self, row: _Row, reward: float) -> None:
        request = row.request
        if not math.isfinite(reward):
            request.fail(
                ScoringError(f"The model gave the reward {reward} for row {row.number}, which is not a number.")
            )
            return
        request.rewards[row.number] = reward
        request.finish_if_complete()
