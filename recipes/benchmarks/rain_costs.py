"""What a call costs: time, forward passes, tokens, and where the processor time goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch


class Meter:
    """Counts a model's forward passes, the tokens that they read, and (on a CPU) their processor time, by hooks that
    are there only while `counting`: with them no pass is replayed as a CUDA graph, and a replay would not call them.
    """

    def __init__(self, model):
        self.model = model
        self.passes = 0
        self.tokens = 0
        self.seconds = 0.0

    @property
    def is_on_gpu(self) -> bool:
        return self.model.device.type == "cuda"

    @contextmanager
    def counting(self) -> Iterator[None]:
        hooks = (
            self.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.model.register_forward_hook(self._end),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _begin(self, module, args: Sequence, kwargs: dict) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self.passes += 1
        self.tokens += ids.numel()
        self._start = time.process_time()

    def _end(self, *_) -> None:
        self.seconds += time.process_time() - self._start

    def wait(self) -> None:
        """Wait for a GPU."""
        if self.is_on_gpu:
            torch.cuda.synchronize()


class TimedEncoder:
    """An encoder that adds up its processor time."""

    def __init__(self, encoder: Callable):
        self.encoder = encoder
        self.seconds = 0.0

    def __call__(self, texts):
        start = time.process_time()
        vectors = self.encoder(texts)
        self.seconds += time.process_time() - start
        return vectors


@dataclass
class Costs:
    """Sums over iterations; `processor`, `in_model` and `in_encoder` are seconds of processor time."""

    iterations: int = 0
    seconds: float = 0.0
    processor: float = 0.0
    passes: int = 0
    tokens: int = 0
    in_model: float = 0.0
    in_encoder: float = 0.0

    def per_iteration(self, name: str) -> float:
        return getattr(self, name) / self.iterations


@dataclass
class Clock:
    """Adds up what calls cost.

    Args:
        meter: counts passes and tokens, padding among them ...
        totals: ... but on a GPU, an engine's own counts of them are taken, without padding, if given.
    """

    meter: Meter
    encoder: TimedEncoder
    totals: Mapping[str, int] | None = None
    costs: Costs = field(default_factory=Costs)

    def __call__(self, function: Callable[[], object], iterations: int) -> None:
        meter, encoder, costs = self.meter, self.encoder, self.costs
        has_own_counts = meter.is_on_gpu and self.totals is not None
        before = (*self._counts(has_own_counts), meter.seconds, encoder.seconds)
        meter.wait()
        with nullcontext() if has_own_counts else meter.counting():
            start, processor = time.perf_counter(), time.process_time()
            function()
            meter.wait()
        costs.seconds += time.perf_counter() - start
        costs.processor += time.process_time() - processor
        costs.iterations += iterations
        passes, tokens = self._counts(has_own_counts)
        costs.passes += passes - before[0]
        costs.tokens += tokens - before[1]
        costs.in_model += meter.seconds - before[2]
        costs.in_encoder += encoder.seconds - before[3]

    def _counts(self, own: bool) -> tuple[int, int]:
        if own:
            return self.totals["forward_passes"], self.totals["forward_tokens"]
        return self.meter.passes, self.meter.tokens
