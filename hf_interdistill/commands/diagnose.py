"""`interdistill diagnose`: what reward models read and what fools them, side by side on one page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from ..diagnostics.collect.candidates import check_candidates
from ..diagnostics.collect.noise_models import check_noise_models
from ..diagnostics.config import CONTEXT_MEASURES, DiagnosisConfig
from ..diagnostics.diagnosis import diagnose
from ..diagnostics.report.page import write_report
from ..diagnostics.result import Diagnosis
from ..scoring.opening import open_scorer, require_reward_model
from ..utils.devices import find_device
from ..utils.fields import as_mapping
from ..utils.privacy import public_name
from ..utils.sources import refuse_same_folder
from ..utils.wording import FLAG, INCONCLUSIVE, PASS
from .tables import console

_STYLES = {PASS: "green", FLAG: "bold red", INCONCLUSIVE: "yellow"}


@dataclass
class DiagnoseArguments:
    """What to look at.

    Args:
        model: reward models, adapters or ensembles, folders or Hub names.
        data: preferences: file, folder or Hub name.
        output: folder for `index.html`, `diagnosis.json`, and the records that a killed run resumes.
        split: of the data, where it has several.
        noise_models: models trained with flipped labels, by the share of them: `{0.1: FOLDER, 0.3: FOLDER}`; with
            several `model`s one such mapping each: `{MODEL: {0.1: FOLDER}, ...}`. On the command line JSON.
        candidates: JSONL of prompts with candidate completions for the curve of best-of-n, as `interdistill best-of-n`
            writes it.
        gold: reward model that scores the candidates as the truth, where the file does not.
        cue: phrase that is put at the end of responses.
        attention_layers: layers whose attention is measured, negative from the end.
        context_measures: which measures of the context are made, `swapped_prompt`, `early_context`, `turn_removal`;
            `none` for none of them.
        limit: pairs, and prompts with candidates, to measure; all if not given.
        resamples: bootstrap resamples behind each interval.
        batch_size: texts per forward pass.
        max_length: longest text in tokens; longer pairs are left out and counted.
        seed: of bootstrap and random order.
        device: where to run (`cpu`, `cuda`, ...); by default a GPU if there is one.
        revision, dtype, attn_implementation: how to load the models.
    """

    model: list[str] = field(metadata={"help": "Reward models, adapters or ensembles: folders or Hub names."})
    data: str = field(metadata={"help": "Preferences: file, folder or Hub name."})
    output: str = field(metadata={"help": "Folder for the report."})
    split: str = field(default="train", metadata={"help": "Split of the data; a single file is `train`."})
    noise_models: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Models trained with flipped labels, by their share; JSON."}
    )
    candidates: str | None = field(default=None, metadata={"help": "JSONL of prompts with candidate completions."})
    gold: str | None = field(default=None, metadata={"help": "Reward model that counts as the truth for candidates."})
    cue: str = field(default=DiagnosisConfig.cue, metadata={"help": "Phrase put at the end of responses."})
    attention_layers: list[int] = field(
        default_factory=lambda: [-1], metadata={"help": "Layers whose attention is measured, negative from the end."}
    )
    context_measures: list[str] = field(
        default_factory=lambda: list(CONTEXT_MEASURES),
        metadata={"help": f"Measures of the context, of {', '.join(CONTEXT_MEASURES)}; or `none`."},
    )
    limit: int | None = field(default=None, metadata={"help": "Pairs and prompts to measure; default: all."})
    resamples: int = field(default=1000, metadata={"help": "Bootstrap resamples behind each interval."})
    batch_size: int = field(default=16, metadata={"help": "Texts per forward pass."})
    max_length: int | None = field(default=None, metadata={"help": "Longest text in tokens."})
    seed: int = field(default=0, metadata={"help": "Seed of bootstrap and random order."})
    device: str | None = field(default=None, metadata={"help": "Where to run; default: a GPU if there is one."})
    revision: str | None = field(default=None, metadata={"help": "Revision of the models."})
    dtype: str = field(default="float32", metadata={"help": "Data type to load the models in."})
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention implementation."})


ARGUMENTS = (DiagnoseArguments,)


def run(args: DiagnoseArguments) -> list[Diagnosis]:
    """Diagnose every model, write the report, print what was found."""
    if len(set(args.model)) != len(args.model):
        raise ValueError(f"`model` names one twice: {', '.join(args.model)}.")
    noise_models = _noise_models(args)
    read = {"`data`": args.data, "`gold`": args.gold, **{f"`model` {name}": name for name in args.model}}
    read |= {f"`noise_models` {name}": name for each in noise_models.values() for name in each.values()}
    refuse_same_folder("`output`", args.output, read)
    check_candidates(args.candidates, args.gold)
    for name in args.model:  # each is loaded when those before it are diagnosed
        require_reward_model(name, revision=args.revision)
    config = DiagnosisConfig(
        cue=args.cue,
        attention_layers=tuple(args.attention_layers),
        context_measures=_context_measures(args.context_measures),
        resamples=args.resamples,
        limit=args.limit,
        max_length=args.max_length,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    diagnoses, records = [], str(Path(args.output) / "records")
    for name in args.model:
        scorer = open_scorer(
            name, revision=args.revision, dtype=args.dtype, attn_implementation=args.attn_implementation
        ).to(find_device(args.device))
        diagnoses.append(
            diagnose(
                scorer,
                args.data,
                config,
                noise_models=noise_models.get(name),
                candidates=args.candidates,
                gold=args.gold,
                name=public_name(name),
                split=args.split,
                records_dir=records,
            )
        )
    page = write_report(diagnoses, args.output)
    _print(diagnoses)
    print(f"Report: {page}")
    return diagnoses


def _context_measures(given: list[str] | str) -> Any:
    """The names that are given, none for `none`; the settings check them."""
    if given in ("none", ["none"]):
        return ()
    return given if isinstance(given, str) else tuple(given)


def _noise_models(args: DiagnoseArguments) -> dict[str, dict[float, str]]:
    """The models trained with flipped labels, by share, of each model that has some; checked before work begins."""
    given = as_mapping("noise_models", args.noise_models)
    if args.noise_models is not None and not given:
        raise ValueError("`noise_models` is empty. Name a model for each share of flipped labels, or leave it out.")
    if not any(isinstance(each, dict) for each in given.values()):
        if given and len(args.model) > 1:
            raise ValueError(
                f"`noise_models` maps shares to models, but `model` names {len(args.model)} models, and it does "
                "not say of which one. Write one mapping per model: {MODEL: {0.1: FOLDER}, ...}."
            )
        given = {args.model[0]: given} if given else {}
    unknown = [name for name in given if name not in args.model]
    if unknown:
        raise ValueError(
            f"`noise_models` has models of {unknown[0]!r}, which `model` does not name ({', '.join(args.model)})."
        )
    checked = {name: check_noise_models(models, name, args.data) for name, models in given.items()}
    return {name: models for name, models in checked.items() if models is not None}


def _print(diagnoses: list[Diagnosis]) -> None:
    table = Table(title="Diagnosis", title_justify="left")
    for column in ("model", "measure", "verdict", ""):
        table.add_column(column, overflow="fold")
    for diagnosis in diagnoses:
        for name, finding in diagnosis.findings().items():
            table.add_row(diagnosis.model, name, finding.verdict, finding.sentence, style=_STYLES[finding.verdict])
        table.add_section()
    console().print(table)
