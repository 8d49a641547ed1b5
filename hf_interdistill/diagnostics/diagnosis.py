"""`diagnose`: measures any reward model on any preferences, and writes a report."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..scoring.scorer import RewardScorer
from ..utils.privacy import public_name
from .collect.candidate_scores import score_candidates
from .collect.candidates import check_candidates
from .collect.loading import as_scorer, fingerprint, name_of
from .collect.measurer import PairMeasurer
from .collect.noise_models import check_noise_models, score_noise_models
from .collect.outcomes import Outcomes
from .collect.records import Records, numbered_rows
from .config import DiagnosisConfig
from .measures.accuracy import PairAccuracy, measure_accuracy
from .measures.attention import AttentionStages, measure_attention
from .measures.best_of_n import BestOfN
from .measures.calibration import Calibration, measure_calibration
from .measures.cue import PlantedCue, measure_cue
from .measures.estimates import Finding
from .measures.length import LengthBias, measure_length
from .measures.masking import MaskingCurve, measure_masking
from .measures.noise import LabelNoise

logger = logging.getLogger(__name__)

_CHUNK = 2  # batches of pairs between two writes
_EXAMPLES = 3
_NOT_ASKED = {
    "label_noise": "no models trained on flipped labels were given",
    "best_of_n": "no candidates were given",
}


@dataclass(frozen=True)
class Diagnosis:
    """What was found about one model on one data set.

    Args:
        model, data: names. pairs: how many were measured. left_out: how many were not, by reason.
        config: the settings. accuracy, ..., calibration: the measures; `attention` is `None` where the model's
            attention cannot be looked at, and `attention_problem` says why.
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
        names = ("accuracy", "masking", "cue", "length", "attention", "calibration", *_NOT_ASKED)
        return {name: getattr(self, name).finding() for name in names if getattr(self, name) is not None}

    def problem(self, name: str) -> str | None:
        """Why a measure is `None`."""
        return self.attention_problem if name == "attention" else f"Not asked: {_NOT_ASKED[name]}."

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain values; numbers that are not defined become `None`."""
        findings = {name: asdict(finding) for name, finding in self.findings().items()}
        not_asked = [name for name in _NOT_ASKED if getattr(self, name) is None]
        values = {name: value for name, value in asdict(self).items() if name not in not_asked}
        return _plain({**values, "findings": findings})


def diagnose(
    model,
    data,
    config: DiagnosisConfig | None = None,
    *,
    noise_models: Mapping[float, Any] | None = None,
    candidates=None,
    gold: str | Callable | None = None,
    tokenizer=None,
    name: str | None = None,
    split: str = "train",
    output_dir: str | None = None,
    records_dir: str | None = None,
    is_progress_shown: bool = True,
) -> Diagnosis:
    """Look for attention hacking and other faults of a reward model.

    Args:
        model: any `*ForSequenceClassification` with one output: folder, Hub name, a loaded model (with `tokenizer`),
            or a `RewardScorer`.
        data: preferences in any format that `RewardTrainer` takes: file, folder or Hub name (read as a stream), or
            rows.
        config: what to measure.
        noise_models: models (as `model`) trained like the diagnosed one, but with a share of the training labels
            flipped, by that share: `{0.1: "runs/flipped-10", 0.3: "runs/flipped-30"}`.
        candidates: prompts with candidate completions, for the curve of best-of-n: JSONL file, or rows, of `prompt`,
            `completions` (two or more) and, without `gold`, `gold_rewards` or `scores`, as `interdistill best-of-n`
            writes them.
        gold: what scores the candidates as the truth: a reward model (as `model`) or a function
            `(prompts, completions) -> scores`.
        tokenizer: of a loaded model.
        name: of the model, for the report.
        split: of the data, where it has several; a single file is `train`.
        output_dir: folder for the report (see `report.write_report`).
        records_dir: folder for the records of the pairs, which a killed run goes on from; `output_dir` if not given.

    Returns:
        the diagnosis; `report.write_report([one, other], folder)` puts several side by side.

    Raises:
        ValueError: data without a usable pair; rewards that are not finite; records of other settings in
            `records_dir`.
    """
    config = config or DiagnosisConfig()
    if noise_models is not None:
        noise_models = check_noise_models(noise_models, model, data)
    if candidates is not None or gold is not None:
        check_candidates(candidates)
    scorer = as_scorer(model, tokenizer, config.batch_size)
    name = name or name_of(model, scorer)
    source = (data, public_name(data) if isinstance(data, str | os.PathLike) else "rows", split)
    folder = records_dir or output_dir
    common = {"name": name, "chunk": _CHUNK * config.batch_size, "is_progress_shown": is_progress_shown}
    measured, problem = _measure_pairs(scorer, source, config, folder, **common)
    diagnosis = _summarize(name, source[1], Outcomes.from_records(measured), config, problem)
    extra: dict[str, Any] = {}
    if noise_models is not None:
        extra["label_noise"] = score_noise_models(noise_models, scorer, measured, source, config, folder, **common)
    if candidates is not None:
        extra["best_of_n"] = score_candidates(candidates, gold, scorer, config, folder, **common)
    diagnosis = replace(diagnosis, **extra)
    for reason, count in diagnosis.left_out.items():
        logger.warning(f"{count} of {len(measured)} pairs were left out: {reason}.")
    if output_dir is not None:
        from .report.page import write_report

        write_report([diagnosis], output_dir)
    return diagnosis


def _measure_pairs(
    scorer: RewardScorer,
    source: tuple[Any, str, str],
    config: DiagnosisConfig,
    folder: str | None,
    *,
    name: str,
    chunk: int,
    is_progress_shown: bool,
) -> tuple[list[dict[str, Any]], str | None]:
    """Records of the pairs, and why attention cannot be looked at."""
    data, data_name, split = source
    measurer = PairMeasurer(scorer, config)
    rows, total = numbered_rows(data, split, config.limit)
    settings = {"model": name, "weights": fingerprint(scorer), "data": data_name, "split": split}
    records = Records(folder, name, "pairs", {**settings, **config.deciding()})
    measured = records.complete(
        rows, total, measurer, chunk=chunk, desc=f"Diagnosing {name}", unit="pair", disable=not is_progress_shown
    )
    return measured, measurer.attention_problem


def _summarize(name: str, data: str, outcomes: Outcomes, config: DiagnosisConfig, problem: str | None) -> Diagnosis:
    has_attention = not np.isnan(outcomes.attention).all()
    if problem is None and not has_attention:
        problem = "No text is long enough to be parted into stages."
    worst = [i for i in np.argsort(outcomes.margins, kind="stable")[:_EXAMPLES] if outcomes.margins[i] < 0]
    return Diagnosis(
        model=name,
        data=data,
        pairs=len(outcomes.margins),
        left_out=outcomes.left_out,
        config=config,
        accuracy=measure_accuracy(outcomes, config),
        masking=measure_masking(outcomes, config),
        cue=measure_cue(outcomes, config),
        length=measure_length(outcomes, config),
        calibration=measure_calibration(outcomes, config),
        attention=measure_attention(outcomes, config) if has_attention else None,
        attention_problem=problem,
        examples=[{**outcomes.texts[i], "margin": float(outcomes.margins[i])} for i in worst],
    )


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
