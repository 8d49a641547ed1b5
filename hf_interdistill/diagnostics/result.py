"""`Diagnosis`: what was found about one model."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from .config import DiagnosisConfig
from .measures.accuracy import PairAccuracy
from .measures.attention import AttentionStages
from .measures.best_of_n import BestOfN
from .measures.calibration import Calibration
from .measures.cue import PlantedCue
from .measures.estimates import Finding
from .measures.length import LengthBias
from .measures.masking import MaskingCurve
from .measures.noise import LabelNoise

_REASONS_NOT_RUN = {
    "label_noise": "no models trained on flipped labels were given",
    "best_of_n": "no candidates were given",
}


@dataclass(frozen=True)
class Diagnosis:
    """What was found about one model on one data set.

    Args:
        model, data: names. pairs: how many were measured. left_out: how many were not, by reason.
        config: the settings. accuracy, ..., calibration: the measures; `attention` is `None` where the model's
            attention cannot be recorded, and `attention_problem` says why.
        examples: the pairs that the model gets most surely wrong, shortened, with their `margin`.
        label_noise, best_of_n: measures that need more than a model and pairs; `None` where that was not given.
    """

    model: str
    data: str
    pairs: int
    left_out: dict[str, int]
    config: DiagnosisConfig
    accuracy: PairAccuracy
    masking: MaskingCurve
    cue: PlantedCue
    length: LengthBias
    calibration: Calibration
    attention: AttentionStages | None
    attention_problem: str | None
    examples: list[dict[str, Any]]
    label_noise: LabelNoise | None = None
    best_of_n: BestOfN | None = None

    def findings(self) -> dict[str, Finding]:
        """What each measure says, by the measure's name."""
        names = ("accuracy", "masking", "cue", "length", "attention", "calibration", *_REASONS_NOT_RUN)
        return {name: getattr(self, name).finding() for name in names if getattr(self, name) is not None}

    def problem(self, name: str) -> str | None:
        """Why a measure is `None`."""
        return self.attention_problem if name == "attention" else f"Not run: {_REASONS_NOT_RUN[name]}."

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain values; numbers that are not defined become `None`."""
        findings = {name: asdict(finding) for name, finding in self.findings().items()}
        not_run = [name for name in _REASONS_NOT_RUN if getattr(self, name) is None]
        values = {name: value for name, value in asdict(self).items() if name not in not_run}
        return _plain({**values, "findings": findings})


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
