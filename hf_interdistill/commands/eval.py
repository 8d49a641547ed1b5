"""`interdistill eval`: reward models on published benchmarks, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..reward_benchmarks import find_benchmark
from ..reward_benchmarks.loading import load_items
from ..reward_benchmarks.reports import notes, short_names, table, write
from ..reward_benchmarks.running import BenchmarkRun, fingerprint_model, run_benchmark
from ..scoring.scorer import RewardScorer
from ..utils.devices import find_device
from ..utils.dtypes import check_dtype
from ..utils.fields import require_positive
from ..utils.jsonl_jobs import JsonlJob
from ..utils.model_config import require_model
from .tables import print_metrics


@dataclass
class EvalArguments:
    """What to evaluate.

    Args:
        model: reward models or adapters, folders or Hub names.
        benchmark: names, such as `reward_bench` (a wrong one lists all).
        output: folder for `results.json`, `results.md` and `scores.jsonl`, which a killed run resumes.
        data: for each benchmark a file or folder in its published format; by default the data set on the Hub.
        batch_size: completions per forward pass.
        max_length: longest text in tokens; a longer one is an error, unless `truncate`.
        truncate: keep the last `max_length` tokens of longer texts; their number is reported.
        device: where to run (`cpu`, `cuda`, ...); by default a GPU if there is one.
        revision, dtype, attn_implementation: how to load the models.
    """

    model: list[str] = field(metadata={"help": "Reward models or adapters: folders or Hub names."})
    benchmark: list[str] = field(metadata={"help": "Benchmarks, such as reward_bench."})
    output: str = field(metadata={"help": "Folder for results.json, results.md and scores.jsonl."})
    data: list[str] | None = field(
        default=None, metadata={"help": "A file or folder per benchmark; default: the Hub."}
    )
    batch_size: int = field(default=16, metadata={"help": "Completions per forward pass."})
    max_length: int | None = field(default=None, metadata={"help": "Longest text in tokens."})
    truncate: bool = field(default=False, metadata={"help": "Keep the last max_length tokens of longer texts."})
    device: str | None = field(default=None, metadata={"help": "Where to run; default: a GPU if there is one."})
    revision: str | None = field(default=None, metadata={"help": "Revision of the models."})
    dtype: str = field(default="float32", metadata={"help": "Data type to load the models in."})
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention implementation."})


ARGUMENTS = (EvalArguments,)


def run(args: EvalArguments) -> dict[str, dict[str, BenchmarkRun]]:
    """Score every model on every benchmark, write and print; returns the results by benchmark and model."""
    benchmarks = [find_benchmark(name) for name in args.benchmark]
    for name, values in (("model", args.model), ("benchmark", args.benchmark)):
        if len(set(values)) != len(values):
            raise ValueError(f"`{name}` names one twice: {', '.join(values)}.")
    if args.data is not None and len(args.data) != len(benchmarks):
        raise ValueError(f"{len(benchmarks)} benchmarks and {len(args.data)} `data`: give one for each, in order.")
    if args.truncate and args.max_length is None:
        raise ValueError("`truncate` needs a `max_length` to cut to.")
    require_positive("batch_size", args.batch_size)
    require_positive("max_length", args.max_length, is_optional=True)
    check_dtype("dtype", args.dtype)
    find_device(args.device)
    sources: Sequence[str | None] = args.data or [None] * len(benchmarks)
    data = dict(zip(args.benchmark, sources, strict=True))
    folder = Path(args.output)
    job = JsonlJob(folder / "scores.jsonl")
    job.open()
    for model in args.model:  # all that can be wrong is found before the first model is scored
        require_model("reward model", model, revision=args.revision)
    items = {benchmark.name: load_items(benchmark, data[benchmark.name]) for benchmark in benchmarks}
    results: dict[str, dict[str, BenchmarkRun]] = {name: {} for name in args.benchmark}
    for model in args.model:
        scorer = _load(args, model)
        key = fingerprint_model(model, scorer, **_settings(args))
        for benchmark in benchmarks:
            results[benchmark.name][model] = run_benchmark(
                scorer, benchmark, items[benchmark.name], job=job, model_key=key, is_truncating=args.truncate
            )
    write(results, folder)
    _print(results, folder)
    return results


def _load(args: EvalArguments, model: str) -> RewardScorer:
    scorer = RewardScorer.from_pretrained(
        model,
        batch_size=args.batch_size,
        max_length=args.max_length,
        revision=args.revision,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
    )
    return scorer.to(find_device(args.device))


def _settings(args: EvalArguments) -> dict:
    """What a reward depends on beside the model."""
    return {
        "revision": args.revision,
        "dtype": args.dtype,
        "attn_implementation": args.attn_implementation,
        "cut_to": args.max_length if args.truncate else None,
    }


def _print(results: dict[str, dict[str, BenchmarkRun]], folder: Path) -> None:
    for benchmark, by_model in results.items():
        names = short_names(list(by_model))
        print_metrics(benchmark, {names[model]: table(scored.result) for model, scored in by_model.items()})
        for note in notes(by_model):
            print(note)
    print(f"Written to {folder}/results.json and {folder}/results.md.")
