"""True value of the completion that a reward model picks among n."""

import datasets
import evaluate

from hf_interdistill.scoring.best_of_n import best_of_n_by_prompt, doubling


class BestOfN(evaluate.Metric):
    """`best_of_1`, `best_of_2`, ...: true value of the pick among n, expected over all subsets of n candidates.

    Inputs: `predictions`, the model's rewards, and `references`, the true values, both of shape
    `(prompts, candidates)`; option `sizes`, the n to report.
    """

    def _info(self):
        row = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            inputs_description=type(self).__doc__,
            features=datasets.Features({"predictions": row, "references": row}),
        )

    def _compute(self, predictions, references, sizes=None):
        if len({len(row) for row in [*predictions, *references]}) > 1:
            raise ValueError("Every prompt needs the same number of candidates, in rewards and true values.")
        sizes = doubling(len(predictions[0])) if sizes is None else sizes
        means = best_of_n_by_prompt(predictions, references, sizes).mean(0)
        return {f"best_of_{n}": float(mean) for n, mean in zip(sizes, means, strict=True)}
