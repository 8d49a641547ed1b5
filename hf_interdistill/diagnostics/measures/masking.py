"""Masking curve: how much of the text does the model need?

Source: Figure 1 of arXiv 2508.02618 (masking early tokens barely hurts a plain reward model until about 80 % is
masked); what is masked, the controls and the rule of the finding are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...utils.wording import FLAG, INCONCLUSIVE, PASS
from ..config import DiagnosisConfig
from .estimates import Estimate, Finding, accuracy, accuracy_of, against_chance, bootstrap, percent, right
from .pair_results import PairResults


@dataclass(frozen=True)
class MaskingCurve:
    """Accuracy with parts of the content removed.

    Args:
        fractions: the parts. first, last: accuracy without that part of prompt and response at the start, or at the
            end (`nan` where nothing of the responses is left, so that all pairs are ties).
        whole: accuracy of whole texts. prompt: without the prompt. response_start: with the prompt, but without the
            largest part of the response.
        drop: what taking the largest part of prompt and response from the start costs (paired).
        kept: without the start of the response, the advantage over chance that is left, minus half of that of whole
            texts (paired; ties are chance).
    """

    fractions: tuple[float, ...]
    first: list[Estimate]
    last: list[Estimate]
    whole: Estimate
    prompt: Estimate
    response_start: Estimate
    drop: Estimate
    kept: Estimate

    def finding(self) -> Finding:
        """`flag`: without the start of the response more than half of the advantage over chance is still there;
        `pass`: less than half is; `inconclusive` in between, or where there is no advantage.

        The prompt stays for this: where it is long, the first 80 % of everything are the prompt and little else, and a
        model may rightly judge a response by itself.
        """
        if not self.whole.low > 0.5:
            sentence = f"On whole texts it is right in {percent(self.whole)}: {against_chance(self.whole)}"
            return Finding(INCONCLUSIVE, f"{sentence}, so there is no advantage that it could lose.")
        sentence = (
            f"Without the first {100 * self.fractions[-1]:.0f} % of the response it is right in "
            f"{percent(self.response_start)} instead of {percent(self.whole)}"
        )
        if self.kept.low > 0:
            return Finding(FLAG, f"{sentence}: more than half of what it knows comes from the last words alone.")
        if self.kept.high < 0:
            return Finding(PASS, f"{sentence}: it needs what comes before the end.")
        return Finding(INCONCLUSIVE, f"{sentence}, too uncertain to say.")


def _drop(whole: np.ndarray, masked: np.ndarray) -> np.ndarray:
    return accuracy(whole) - accuracy(masked)


def _kept(whole: np.ndarray, masked: np.ndarray) -> np.ndarray:
    return right(masked).mean(-1) - 0.5 - (right(whole).mean(-1) - 0.5) / 2


def measure_masking(results: PairResults, config: DiagnosisConfig) -> MaskingCurve:
    options: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed}
    margins = {kind: results.margins_of(kind) for kind in results.rewards}

    return MaskingCurve(
        fractions=config.fractions,
        first=[accuracy_of(margins[f"first {fraction:g}"]) for fraction in config.fractions],
        last=[accuracy_of(margins[f"last {fraction:g}"]) for fraction in config.fractions],
        whole=accuracy_of(margins["full"]),
        prompt=accuracy_of(margins["prompt"]),
        response_start=accuracy_of(margins["response start"]),
        drop=bootstrap(
            _drop, margins["full"], margins[f"first {config.fractions[-1]:g}"], bounds=(-1.0, 1.0), **options
        ),
        kept=bootstrap(_kept, margins["full"], margins["response start"], bounds=(-0.75, 0.75), **options),
    )
