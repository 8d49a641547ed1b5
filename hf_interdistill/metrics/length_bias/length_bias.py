"""Whether a reward model prefers longer completions."""

import numpy as np

import hf_interdistill.metrics.base as base
import hf_interdistill.scoring.metrics as formulas


class LengthBias(base.PairMetric):
    """`length_correlation`, `accuracy_longer_is_worse`, `pairs_longer_is_worse`; needs `chosen_lengths` and
    `rejected_lengths`."""

    extra_inputs = ("chosen_lengths", "rejected_lengths")

    def measure(self, chosen, rejected, **options):
        differences = np.subtract(options["chosen_lengths"], options["rejected_lengths"])
        return formulas.length_bias(formulas.pair_margins(chosen, rejected), differences)
