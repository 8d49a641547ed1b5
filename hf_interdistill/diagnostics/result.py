"""`Diagnosis`: what was found about one model."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from .config import CONTEXT_MEASURES, DiagnosisConfig
from .measures.accuracy import PairAccuracy
from .measures.attention import AttentionStages
from .measures.best_of_n import BestOfN
from .measures.calibration import Calibration
from .measures.cue import PlantedCue
from .measures.disagreement import Disagreement
from .measures.early_context import EarlyContext
from .measures.estimates import Finding
from .measures.length import LengthBias
from .measures.masking import MaskingCurve
from .measures.noise import LabelNoise
from .measures.swapped_prompt import SwappedPrompt
from .measures.turn_removal import TurnRemoval

_WITH_MORE = {
    "disagreement": "the model is not an ensemble",
    "label_noise": "no models trained on flipped labels were given",
    "best_of_n": "no candidates were given",
}
_REASONS_NOT_RUN = {**dict.fromkeys(CONTEXT_MEASURES, "`context_measures` does not name it"), **_WITH_MORE}


@dataclass(frozen=True)
class Diagnosis:
    """What was found about one model on one data set.

    Args:
        model, data: names. pairs: how many were measured. left_out: how many were not, by reason.
        config: the settings. accuracy, ..., calibration: the measures; `attention` is `None` where the model's
            attention cannot be recorded, and `attention_problem` says why.
        examples: the most confident mistakes, shortened, with their `margin`.
        swapped_prompt, early_context, turn_removal: measures of the context; `None` where the settings do not name
            them, or the data do not allow them, and then `context_problems` says why, by name.
        disagreement: of the members of an ensemble; `None` for a single model.
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
    swapped_prompt: SwappedPrompt | None = None
    early_context: EarlyContext | None = None
    turn_removal: TurnRemoval | None = None
    context_problems: dict[str, str] = field(default_factory=dict)
    disagreement: Disagreement | None = None
    label_noise: LabelNoise | None = None
    best_of_n: BestOfN | None = None

    def findings(self) -> dict[str, Finding]:
        """The finding of each measure, by its name."""
        names = ("accuracy", "masking", *CONTEXT_MEASURES, "cue", "length", "attention", "calibration", *_WITH_MORE)
        return {name: getattr(self, name).finding() for name in names if getattr(self, name) is not None}

    def problem(self, name: str) -> str | None:
        """Why a measure is `None`."""
        if name in self.context_problems:
            return f"Not run: {self.context_problems[name]}"
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
