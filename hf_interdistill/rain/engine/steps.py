"""A generator that asks for forward passes, run one pass at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from ..kv_cache.forward import ForwardInput, ForwardOutput

Outputs = dict[ForwardInput, ForwardOutput]
Steps = Generator[list[ForwardInput], Outputs, Any]


class RunningSteps:
    """Steps under way.

    Args:
        steps: yields the inputs that it needs of the next forward pass, and is sent the outputs.

    Attributes:
        inputs: what is needed of the next forward pass. is_finished, result: the end.
    """

    def __init__(self, steps: Steps):
        self.inputs: list[ForwardInput] = []
        self.is_finished = False
        self.result: Any = None
        self._steps = steps
        self._move(lambda: next(self._steps))

    def advance(self, outputs: Outputs) -> None:
        """Take the outputs of a forward pass, and come to the next inputs.

        Args:
            outputs: of all inputs of the pass; the steps take their own.
        """
        self._move(lambda: self._steps.send(outputs))

    def _move(self, step: Callable[[], list[ForwardInput]]) -> None:
        try:
            self.inputs = step()
        except StopIteration as stop:
            self.inputs, self.is_finished, self.result = [], True, stop.value

    def close(self) -> None:
        """Drop them."""
        self._steps.close()
