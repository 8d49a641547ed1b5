"""What a server counts, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class QueueMetrics:
    """Counters of one queue and of the requests that use it, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        prefix: dict[str, Any] = {"namespace": "interdistill", "registry": self.registry}
        self.requests = Counter("requests", "Requests answered.", ["endpoint", "status"], **prefix)
        self.seconds = Histogram("request_seconds", "Time of a request.", ["endpoint"], buckets=_SECONDS, **prefix)
        self.waiting_rows = Gauge("waiting_rows", "Rows that are not scored yet.", **prefix)
        self._rows = Counter("rows", "Rows scored.", **prefix)
        self._tokens = Counter("tokens", "Tokens scored, without padding.", **prefix)
        self._padding = Counter("padding_tokens", "Padding tokens read.", **prefix)
        self._model_seconds = Counter("model_seconds", "Time in the model.", **prefix)
        self._batch_rows = Histogram("batch_rows", "Rows of a batch.", buckets=_SIZES, **prefix)

    def count_batch(self, lengths: Sequence[int], seconds: float) -> None:
        """Count a batch of rows with so many tokens each."""
        self._rows.inc(len(lengths))
        self._tokens.inc(sum(lengths))
        self._padding.inc(len(lengths) * max(lengths) - sum(lengths))
        self._model_seconds.inc(seconds)
        self._batch_rows.observe(len(lengths))
