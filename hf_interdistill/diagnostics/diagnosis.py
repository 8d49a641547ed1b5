"""`diagnose`: measures any reward model on any preferences, and writes a report."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..data import get_split, load_preferences
from ..durable import mend_lines, write_whole
from ..hub.privacy import public_name
from ..scoring.scorer import RewardScorer
from .accuracy import PairAccuracy, measure_accuracy
from .attention import AttentionStages, measure_attention
from .calibration import Calibration, measure_calibration
from .config import DiagnosisConfig
from .cue import PlantedCue, measure_cue
from .estimates import Finding
from .length import LengthBias, measure_length
from .masking import MaskingCurve, measure_masking
from .measuring import PairMeasurer
from .outcomes import Outcomes

logger = logging.getLogger(__name__)

_CHUNK = 2  # batches of pairs between two writes
_EXAMPLES = 3


@dataclass(frozen=True)
class Diagnosis:
    """What was found about one model on one data set.

    Args:
        model, data: names. pairs: how many were measured. left_out: how many were not, by reason.
        config: the settings. accuracy, ..., calibration: the measures; `attention` is `None` where the model's
            attention cannot be looked at, and `attention_problem` says why.
        examples: the pairs that the model gets most surely wrong, shortened, with their `margin`.
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

    def findings(self) -> dict[str, Finding]:
        """What each measure says, by the measure's name."""
        names = ("accuracy", "masking", "cue", "length", "attention", "calibration")
        return {name: getattr(self, name).finding() for name in names if getattr(self, name) is not None}

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain values; numbers that are not defined become `None`."""
        findings = {name: asdict(finding) for name, finding in self.findings().items()}
        return _plain({**asdict(self), "findings": findings})


def diagnose(
    model,
    data,
    config: DiagnosisConfig | None = None,
    *,
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
    scorer = _as_scorer(model, tokenizer, config)
    name = name or (public_name(model) if isinstance(model, str | os.PathLike) else scorer.__name__)
    data_name = public_name(data) if isinstance(data, str | os.PathLike) else "rows"
    measurer = PairMeasurer(scorer, config)
    rows, total = _numbered_rows(data, split, config.limit)
    settings = {"model": name, "weights": _fingerprint(scorer), "data": data_name, "split": split}
    records = _Records(records_dir or output_dir, name, {**settings, **config.deciding()})
    if total is not None and len(records.rows) > total:  # of a run with a larger limit
        records.rows = records.rows[:total]
    with tqdm(total=total, desc=f"Diagnosing {name}", disable=not is_progress_shown, unit="pair") as progress:
        progress.update(len(records.rows))
        rows = islice(rows, len(records.rows), None)
        while chunk := list(islice(rows, _CHUNK * config.batch_size)):
            records.append(measurer(chunk))
            progress.update(len(chunk))
    diagnosis = _summarize(name, data_name, Outcomes.from_records(records.rows), config, measurer.attention_problem)
    for reason, count in diagnosis.left_out.items():
        logger.warning(f"{count} of {len(records.rows)} pairs were left out: {reason}.")
    if output_dir is not None:
        from .report import write_report

        write_report([diagnosis], output_dir)
    return diagnosis


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


class _Records:
    """The records of a model's pairs, kept in `folder` line by line, if there is one."""

    def __init__(self, folder: str | None, name: str, settings: dict[str, Any]):
        self.rows: list[dict[str, Any]] = []
        self.path = None
        if folder is None:
            return
        self.path = Path(folder) / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}.pairs.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = self.path.with_suffix(".settings.json")
        settings = json.loads(json.dumps(settings))
        if self.path.exists():
            before = json.loads(state.read_text(encoding="utf-8")) if state.exists() else None
            if before != settings:
                changed = sorted(key for key in settings if (before or {}).get(key) != settings[key])
                raise ValueError(
                    f"{self.path} was made with other settings ({', '.join(changed)} differ). Delete it, or write to "
                    "another folder."
                )
            mend_lines(self.path)
            self.rows = [json.loads(line) for line in self.path.read_text(encoding="utf-8").split("\n") if line]
        write_whole(state, json.dumps(settings, indent=2))

    def append(self, records: list[dict[str, Any]]) -> None:
        self.rows += records
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())


def _as_scorer(model, tokenizer, config: DiagnosisConfig) -> RewardScorer:
    if isinstance(model, RewardScorer):
        model.batch_size = config.batch_size
        return model
    if isinstance(model, str | os.PathLike):
        return RewardScorer.from_pretrained(str(model), tokenizer, batch_size=config.batch_size)
    if tokenizer is None:
        raise ValueError("A loaded model comes without its tokenizer: pass `tokenizer=` too.")
    return RewardScorer(model, tokenizer, batch_size=config.batch_size)


def _fingerprint(scorer: RewardScorer) -> int:
    """A number that changes when the model is trained again: of its last parameter, the score head."""
    last = None
    for last in scorer.model.parameters():  # noqa: B007
        pass
    return 0 if last is None else zlib.crc32(last.detach().float().cpu().numpy().tobytes())


def _numbered_rows(data, split: str, limit: int | None) -> tuple[Iterator[tuple[int, dict[str, Any]]], int | None]:
    """Rows with their numbers, and how many there are, if that is known."""
    total = None
    if isinstance(data, str | os.PathLike):
        path = Path(data)
        if path.suffix == ".jsonl" and path.is_file():
            with path.open("rb") as lines:
                total = sum(1 for line in lines if line.strip())
        data = get_split(load_preferences(str(data), is_streaming=True), split, str(data))
    elif hasattr(data, "__len__"):
        total = len(data)
    elif not isinstance(data, Iterable):
        raise TypeError(f"`data` is {type(data).__name__}, but must be a path, a Hub name or rows.")
    if limit is not None:
        total = min(total, limit) if total is not None else limit
    return islice(enumerate(data), limit), total


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
