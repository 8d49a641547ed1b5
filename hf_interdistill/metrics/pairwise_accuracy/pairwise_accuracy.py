"""Share of pairs whose chosen completion has the higher reward; ties are counted separately."""

import hf_interdistill.metrics.base as base
import hf_interdistill.scoring.metrics as formulas


class PairwiseAccuracy(base.PairMetric):
    """`pairwise_accuracy` among the pairs that are not ties, `ties` and `pairs` (counts)."""

    def measure(self, chosen, rejected, **_):
        return formulas.pairwise_accuracy(formulas.pair_margins(chosen, rejected))
