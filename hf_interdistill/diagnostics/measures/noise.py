"""Label noise: how much accuracy is lost when labels of the training pairs were flipped?

Source: training on flipped labels and testing on clean ones is common practice; the rule of the finding is ours.

*What is to be expected.* A model that repeats what it was taught, flips included, at a share s of flipped labels keeps
`1 - 2 s` of its advantage over chance: where it was right in a of the pairs, it is then right in
`a (1 - s) + (1 - a) s`. Flips at random say nothing about the texts, so a learner with enough data to see through
them loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...utils.wording import FLAG, INCONCLUSIVE, PASS
from ..config import DiagnosisConfig
from .estimates import Estimate, Finding, against_chance, bootstrap, lost, mean, percent, right, share_of

_LARGE_SHARE = 0.5


@dataclass(frozen=True)
class LabelNoise:
    """Accuracy of the same pairs by models that were trained with more and more flipped labels.

    Ties count half, since models are compared.

    Args:
        shares: of flipped labels, rising; the diagnosed model, with none, is not among them. models: their names.
        clean: accuracy of the diagnosed model. accuracy: of the others. loss: the first minus each other (paired).
        lost_advantage: the loss as a share of the advantage over chance (paired); `nan` where there is none.
        excess: at the largest share, the loss minus half of what `expected_loss` says (paired).
        left_out: pairs that one of the models cannot read.
    """

    shares: tuple[float, ...]
    models: tuple[str, ...]
    clean: Estimate
    accuracy: list[Estimate]
    loss: list[Estimate]
    lost_advantage: list[Estimate]
    excess: Estimate
    left_out: int

    def at(self, share: float) -> Estimate | None:
        """The loss at a share; `None` where no model has it."""
        return dict(zip(self.shares, self.loss, strict=True)).get(share)

    def finding(self) -> Finding:
        """`flag`: at the largest share the loss is more than half of what it would be if every flipped label were
        repeated; `pass`: less than half of it; `inconclusive` in between, or where there is no advantage to lose."""
        if not self.clean.low > 0.5:
            sentence = f"Without flipped labels it is right in {percent(self.clean)}: {against_chance(self.clean)}"
            return Finding(INCONCLUSIVE, f"{sentence}, so there is no advantage that it could lose.")
        largest = self.shares[-1]
        sentence = (
            f"With {100 * largest:g} % of its training labels flipped it is right in {percent(self.accuracy[-1])} "
            f"instead of {percent(self.clean)}, {lost(self.loss[-1])}; a model that repeats every flip "
            f"would lose {100 * expected_loss(self.clean.value, largest):.1f}."
        )
        if self.left_out:
            sentence += f" Pairs that are too long for one of the models: {self.left_out}."
        if self.excess.low > 0:
            return Finding(FLAG, f"{sentence} It learns the flips rather than seeing through them.")
        if self.excess.high < 0:
            return Finding(PASS, f"{sentence} It sees through most of them.")
        return Finding(INCONCLUSIVE, f"{sentence} Too uncertain to say.")


def expected_loss(accuracy, share: float):
    """What a model loses that repeats every flipped label: `2 s` of its advantage over chance."""
    return 2 * share * (accuracy - 0.5)


def measure_noise(
    margins: np.ndarray, noisy: dict[float, tuple[str, np.ndarray]], left_out: int, config: DiagnosisConfig
) -> LabelNoise:
    """Compare a model with the same trained on flipped labels.

    Args:
        margins: of the diagnosed model, `(pairs,)`. noisy: for each share the name of the model and its margins of the
            same pairs. left_out: pairs that are not among them.
        config: of the bootstrap.
    """
    options: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed}
    shares = tuple(sorted(noisy))
    clean = right(margins)
    others = [right(noisy[share][1]) for share in shares]
    repeated = _LARGE_SHARE * 2 * shares[-1]

    def excess(clean: np.ndarray, other: np.ndarray) -> np.ndarray:
        return (clean - other).mean(-1) - _LARGE_SHARE * expected_loss(clean.mean(-1), shares[-1])

    def lost_advantage(clean: np.ndarray, other: np.ndarray) -> np.ndarray:
        advantage = clean.mean(-1) - 0.5
        return np.where(advantage > 0, (clean - other).mean(-1) / advantage, np.nan)

    return LabelNoise(
        shares=shares,
        models=tuple(noisy[share][0] for share in shares),
        clean=share_of(clean),
        accuracy=[share_of(other) for other in others],
        loss=[bootstrap(mean, clean - other, bounds=(-1.0, 1.0), **options) for other in others],
        lost_advantage=[bootstrap(lost_advantage, clean, other, **options) for other in others],
        excess=bootstrap(excess, clean, others[-1], bounds=(repeated / 2 - 1, 1 - repeated / 2), **options),
        left_out=left_out,
    )
