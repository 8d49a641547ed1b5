"""Captures the work of a CUDA device, to replay it with one launch.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs (warm-up, shared memory of graphs).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch


class CudaCapture:
    """Captures the passes of one model; its graphs share their memory, since they never run at the same time."""

    def __init__(self, device: torch.device):
        self.device = device
        torch.cuda.empty_cache()  # graphs get memory of their own
        with torch.cuda.device(device):
            self.stream = torch.cuda.Stream()
            self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Warm up and capture what `run` does; the result replays it, and returns the same tensor each time."""
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                run()
                try:
                    graph, output = self._captured(run)
                except RuntimeError:
                    self._end_allocating()
                    raise
            current.wait_stream(self.stream)

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay

    def _captured(self, run: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """Not by `torch.cuda.graph`, which empties the allocator's cache each time: eager passes would pay for it."""
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(self.pool, capture_error_mode="thread_local")  # other threads may keep allocating
        try:
            output = run()
        finally:
            graph.capture_end()
        return graph, output

    def _end_allocating(self) -> None:
        """Clean up after a capture that CUDA aborted: torch's allocator would keep asking for it."""
        with suppress(AttributeError, RuntimeError):  # no public name; and there may be nothing left to undo
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self.pool)


CAPTURES: dict[str, Callable] = {"cuda": CudaCapture}  # by the type of device
