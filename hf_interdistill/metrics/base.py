"""Common parts of the metrics of pairs."""

from __future__ import annotations

from typing import ClassVar

import datasets
import evaluate

_SHARED = ("chosen_lengths", "rejected_lengths", "bins", "seed")


class PairMetric(evaluate.Metric):
    """A metric of chosen and rejected rewards.

    Inputs: `predictions`, rewards of the chosen completions; `references`, rewards of the rejected ones; both floats,
    shape `(pairs,)`. `evaluate.combine` passes its keyword arguments to every metric, so each also accepts those of
    the others (`chosen_lengths`, `rejected_lengths`, `bins`, `seed`), and refuses any other.
    """

    extra_inputs: ClassVar[tuple[str, ...]] = ()

    def _info(self):
        rewards = {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
        lengths = {name: datasets.Value("float64") for name in self.extra_inputs}
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            inputs_description=PairMetric.__doc__,
            features=datasets.Features({**rewards, **lengths}),
        )

    def _compute(self, predictions, references, **options):
        for name in options:
            if name not in _SHARED:
                raise TypeError(f"`{name}` is not an input of a pair metric; there are {', '.join(_SHARED)}.")
        return self.measure(predictions, references, **options)

    def measure(self, chosen, rejected, **options) -> dict[str, float]:
        """The measure itself."""
        raise NotImplementedError
