"""`interdistill eval`: reward models on published benchmarks, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..reward_benchmarks import BENCHMARKS, find_benchmark
from ..reward_benchmarks.analysis import analyze
from ..reward_benchmarks.batch_check import BatchCheck, check_batches
from ..reward_benchmarks.grids import Report
from ..reward_benchmarks.loading import load_items
from ..reward_benchmarks.reports import notes, tables, write
from ..reward_benchmarks.running import BenchmarkRun, fingerprint_model, run_benchmark
from ..scoring.opening import require_reward_model
from ..scoring.remote import RemoteRewardScorer
from ..scoring.text_scorer import TextScorer
from ..utils.devices import find_device
from ..utils.dtypes import check_dtype
from ..utils.fields import require_positive
from ..utils.jsonl_jobs import JsonlJob
from ..utils.sources import refuse_same_folder
from .scorers import load_scorer, refuse_unused_of_scorers
from .tables import console


@dataclass
class EvalArguments:
    """What to evaluate.

    Args:
        model: reward models, adapters or ensembles, folders or Hub names.
        benchmark: names; `--help` lists them.
        output: folder for `results.json` and `results.md`, and for `scores.jsonl` and `batch_checks.jsonl`, which a
            killed run resumes.
        data: for each benchmark a file or folder in its published format; by default the data set on the Hub.
        batch_size: completions per forward pass.
        max_length: longest text in tokens; a longer one is an error, unless `truncate`.
        truncate: keep the last `max_length` tokens of longer texts; their number is reported.
        length_share: answers are alike in length if they differ by at most this share of the longer one, 0 to 1.
        resamples: of the bootstrap over items, for intervals and paired differences.
        batch_tolerance: how far rewards in batches may be from those of the same texts alone, as a share of the
            largest reward; more is an error. By default what rounding explains.
        device: where to run (`cpu`, `cuda`, ...); by default a GPU if there is one.
        revision, dtype, attn_implementation: how to load the models.
        reward_server: addresses of servers that have the models, one for each, or one for all; `model` has the names
            that they are served by. Several servers of a model stand with commas between them.
        reward_api: how these servers are asked: `interdistill` for `interdistill serve`, `classify` for vLLM.
        reward_tokenizer: with `classify`, for each model the name or folder of its tokenizer; by default its own name.
        server_timeout: seconds that a request to a server may take.
    """

    model: list[str] = field(metadata={"help": "Reward models, adapters or ensembles: folders or Hub names."})
    benchmark: list[str] = field(metadata={"help": f"Benchmarks: {', '.join(BENCHMARKS)}."})
    output: str = field(metadata={"help": "Folder for results.json, results.md and scores.jsonl."})
    data: list[str] | None = field(
        default=None, metadata={"help": "A file or folder per benchmark; default: the Hub."}
    )
    batch_size: int = field(default=16, metadata={"help": "Completions per forward pass."})
    max_length: int | None = field(default=None, metadata={"help": "Longest text in tokens."})
    truncate: bool = field(default=False, metadata={"help": "Keep the last max_length tokens of longer texts."})
    length_share: float = field(default=0.1, metadata={"help": "Lengths within this share of the longer are alike."})
    resamples: int = field(default=1000, metadata={"help": "Resamples of the bootstrap over items."})
    batch_tolerance: float | None = field(
        default=None, metadata={"help": "Allowed relative difference of rewards in batches; default: rounding."}
    )
    device: str | None = field(default=None, metadata={"help": "Where to run; default: a GPU if there is one."})
    revision: str | None = field(default=None, metadata={"help": "Revision of the models."})
    dtype: str = field(default="float32", metadata={"help": "Data type to load the models in."})
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention implementation."})
    reward_server: list[str] | None = field(default=None, metadata={"help": "Addresses of servers with the models."})
    reward_api: str = field(default="interdistill", metadata={"help": "Its kind: interdistill, or classify (vLLM)."})
    reward_tokenizer: list[str] | None = field(default=None, metadata={"help": "Tokenizers of served models."})
    server_timeout: float = field(default=300.0, metadata={"help": "Seconds that a request may take."})


ARGUMENTS = (EvalArguments,)


def run(args: EvalArguments) -> dict[str, dict[str, BenchmarkRun]]:
    """Score every model on every benchmark, write and print; returns the results by benchmark and model."""
    benchmarks = [find_benchmark(name) for name in args.benchmark]
    _check(args)
    servers, tokenizers = _per_model(args, "reward_server"), _per_model(args, "reward_tokenizer")
    sources: Sequence[str | None] = args.data or [None] * len(benchmarks)
    data = dict(zip(args.benchmark, sources, strict=True))
    folder = Path(args.output)
    with JsonlJob(folder / "scores.jsonl") as job, JsonlJob(folder / "batch_checks.jsonl") as checked:
        job.open()
        checked.open()
        for model in args.model:  # all that can be wrong is found before the first model is scored
            if servers[model] is None:
                require_reward_model(model, revision=args.revision)
        items = {benchmark.name: load_items(benchmark, data[benchmark.name]) for benchmark in benchmarks}
        results: dict[str, dict[str, BenchmarkRun]] = {name: {} for name in args.benchmark}
        checks: dict[str, dict[str, BatchCheck | None]] = {name: {} for name in args.benchmark}
        for model in args.model:
            scorer = load_scorer(args, model, servers[model], tokenizers[model])
            key = key_of(model, scorer, **_settings(args))
            for benchmark in benchmarks:  # a model that cannot be scored in batches is found before the long work
                checks[benchmark.name][model] = check_batches(
                    scorer,
                    items[benchmark.name],
                    job=checked,
                    model_key=key,
                    is_truncating=args.truncate,
                    allowed=args.batch_tolerance,
                )
            for benchmark in benchmarks:
                results[benchmark.name][model] = run_benchmark(
                    scorer, benchmark, items[benchmark.name], job=job, model_key=key, is_truncating=args.truncate
                )
    reports = {}
    for benchmark in tqdm(benchmarks, desc="Baselines and intervals"):
        runs = results[benchmark.name]
        rewards = {model: run.rewards for model, run in runs.items()}
        analysis = analyze(
            benchmark, items[benchmark.name], rewards, length_share=args.length_share, resamples=args.resamples
        )
        reports[benchmark.name] = Report(runs, analysis, checks[benchmark.name])
    write(reports, folder)
    _print(reports, folder)
    return results


def _check(args: EvalArguments) -> None:
    """Raise `ValueError` for settings that are out of range or do not fit together."""
    for name, values in (("model", args.model), ("benchmark", args.benchmark)):
        if len(set(values)) != len(values):
            raise ValueError(f"`{name}` names one twice: {', '.join(values)}.")
    if args.data is not None and len(args.data) != len(args.benchmark):
        raise ValueError(f"{len(args.benchmark)} benchmarks and {len(args.data)} `data`: give one for each, in order.")
    if args.truncate and args.max_length is None:
        raise ValueError("`truncate` needs a `max_length` to cut to.")
    require_positive("batch_size", args.batch_size)
    require_positive("max_length", args.max_length, is_optional=True)
    require_positive("resamples", args.resamples)
    if not 0 <= args.length_share <= 1:
        raise ValueError(f"`length_share` is {args.length_share}, but must be a share from 0 to 1, such as 0.1.")
    if args.batch_tolerance is not None and not 0 <= args.batch_tolerance < math.inf:
        raise ValueError(
            f"`batch_tolerance` is {args.batch_tolerance}, but must be a finite share of the largest reward, such as "
            "0.001, or 0."
        )
    read = {f"`{option}` {name}": name for option in ("model", "data") for name in getattr(args, option) or []}
    refuse_same_folder("`output`", args.output, read)
    check_dtype("dtype", args.dtype)
    find_device(args.device)
    refuse_unused_of_scorers(args)


def _per_model(args: EvalArguments, option: str) -> dict[str, str | None]:
    """An option's value for each model: its own, or the one for all."""
    given = getattr(args, option)
    if given is None:
        return dict.fromkeys(args.model)
    if len(given) not in (1, len(args.model)):
        raise ValueError(f"{len(args.model)} models and {len(given)} `{option}`: give one for each, or one for all.")
    return dict(zip(args.model, given if len(given) > 1 else given * len(args.model), strict=True))


def key_of(model: str, scorer: TextScorer, revision: str | None = None, **settings: Any) -> str:
    """The key of a model's kept rewards: its fingerprint, with what servers tell of it or of its members."""
    parts = (scorer, *getattr(scorer, "members", ()))
    if told := [[each.served_name, each.told()] for each in parts if isinstance(each, RemoteRewardScorer)]:
        settings["served"] = told
    return fingerprint_model(model, revision, is_served=isinstance(scorer, RemoteRewardScorer), **settings)


def _settings(args: EvalArguments) -> dict:
    """What a reward depends on beside the model."""
    return {
        "revision": args.revision,
        "dtype": args.dtype,
        "attn_implementation": args.attn_implementation,
        "cut_to": args.max_length if args.truncate else None,
    }


def _print(reports: Mapping[str, Report], folder: Path) -> None:
    for benchmark, report in reports.items():
        for table in tables(benchmark, report):
            console().print(table)
        for note in notes(report):
            print(note)
    print(f"Written to {folder}/results.json and {folder}/results.md.")
