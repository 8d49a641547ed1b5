"""`diagnose`: measures any reward model on any preferences, and writes a report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from ..scoring.opening import LocalScorer, require_reward_model
from .collect.candidate_scores import score_candidates
from .collect.candidates import candidate_rows, check_candidates
from .collect.context_measures import measure_context
from .collect.loading import as_scorer, fingerprint, name_of
from .collect.measurer import PairMeasurer
from .collect.noise_models import check_noise_models, score_noise_models
from .collect.records import PairData, RecordStore
from .collect.rereading import Rereading
from .config import DiagnosisConfig
from .measures.accuracy import measure_accuracy
from .measures.attention import measure_attention
from .measures.calibration import measure_calibration
from .measures.cue import measure_cue
from .measures.disagreement import measure_disagreement
from .measures.length import measure_length
from .measures.masking import measure_masking
from .measures.pair_results import PairResults
from .report.page import write_report
from .result import Diagnosis

logger = logging.getLogger(__name__)

_BATCHES_PER_WRITE = 2
_EXAMPLES = 3


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
        model: any `*ForSequenceClassification` with one output: folder, Hub name, loaded model, or a `RewardScorer`;
            or an ensemble: its folder, or a `RewardEnsemble`, whose members' disagreement is measured too.
        data: preferences in any format that `RewardTrainer` takes: file, folder, Hub name (read as a stream), or rows.
        config: what to measure.
        noise_models: models (as `model`) trained like the diagnosed one, but with a share of the training labels
            flipped, by that share: `{0.1: "runs/flipped-10", 0.3: "runs/flipped-30"}`.
        candidates: prompts with candidate completions, for the curve of best-of-n: JSONL file, or rows, of `prompt`,
            `completions` (two or more) and, without `gold`, `gold_rewards` or `scores`.
        gold: what scores the candidates as the truth: a reward model (as `model`) or a function
            `(prompts, completions) -> scores`.
        tokenizer: of a loaded model. name: of the model, for the report. split: of the data, where it has several.
        output_dir: folder for the report (see `report.page.write_report`).
        records_dir: folder for the records, which a killed run resumes from; `output_dir` if not given.

    Raises:
        ValueError: data without a usable pair; rewards that are not finite; records of other settings in
            `records_dir`.
    """
    config = config or DiagnosisConfig()
    noise_models = check_noise_models(noise_models, model, data)
    check_candidates(candidates, gold)
    # Candidates are scored last, but checked first.
    if candidates is not None and not list(islice(candidate_rows(candidates, gold is None), config.limit)):
        raise ValueError("There is no prompt with candidates: `candidates` is empty. Give it at least one row.")
    for kind, each in (("gold model", gold), *(("noise model", each) for each in (noise_models or {}).values())):
        if isinstance(each, str):
            require_reward_model(each, kind)
    scorer = as_scorer(model, tokenizer, config.batch_size)
    name = name or name_of(model, scorer)
    store = RecordStore(records_dir or output_dir, name, _BATCHES_PER_WRITE * config.batch_size, is_progress_shown)
    diagnosis = _measure(scorer, PairData(data, split), config, store, noise_models)
    if candidates is not None:
        diagnosis = replace(diagnosis, best_of_n=score_candidates(candidates, gold, scorer, config, store))
    if output_dir is not None:
        write_report([diagnosis], output_dir)
    return diagnosis


def _measure(
    scorer: LocalScorer,
    pairs: PairData,
    config: DiagnosisConfig,
    store: RecordStore,
    noise_models: dict[float, Any] | None,
) -> Diagnosis:
    """Every measure of the pairs."""
    measurer = PairMeasurer(scorer, config)
    settings = {"model": store.name, "weights": fingerprint(scorer), "data": pairs.name, "split": pairs.split}
    settings |= config.result_settings()
    description = f"Diagnosing {store.name}"
    records = store.collect(
        (store.name, "pairs"), settings, pairs.rows(config.limit), measurer, desc=description, unit="pair"
    )
    results = PairResults.from_records(records)
    diagnosis = _summarize((store.name, pairs.name), results, config, measurer.attention_problem)
    for reason, count in diagnosis.left_out.items():
        logger.warning(f"{count} of {len(records)} pairs were left out: {reason}.")
    found, problems = measure_context(Rereading(scorer, pairs, records, config, store))
    for name, problem in problems.items():
        logger.warning(f"{name.replace('_', ' ').capitalize()} was not measured. {problem}")
    diagnosis = replace(diagnosis, **found, context_problems=problems)
    if noise_models is None:
        return diagnosis
    return replace(diagnosis, label_noise=score_noise_models(noise_models, scorer, (pairs, records), config, store))


def _summarize(
    names: tuple[str, str], results: PairResults, config: DiagnosisConfig, attention_problem: str | None
) -> Diagnosis:
    model, data = names
    has_attention = not np.isnan(results.attention).all()
    if attention_problem is None and not has_attention:
        attention_problem = "No text is long enough to be divided into stages."
    worst = [i for i in np.argsort(results.margins, kind="stable")[:_EXAMPLES] if results.margins[i] < 0]
    return Diagnosis(
        model=model,
        data=data,
        pairs=len(results.margins),
        left_out=results.left_out,
        config=config,
        accuracy=measure_accuracy(results),
        masking=measure_masking(results, config),
        cue=measure_cue(results, config),
        length=measure_length(results, config),
        calibration=measure_calibration(results, config),
        disagreement=measure_disagreement(results, config),
        attention=measure_attention(results, config) if has_attention else None,
        attention_problem=attention_problem,
        examples=[{**results.texts[i], "margin": float(results.margins[i])} for i in worst],
    )
