"""From items to rewards, in a file that a killed run resumes, and from rewards to scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

from tqdm.auto import tqdm

from ..scoring.model_digests import digest_of_model
from ..scoring.text_scorer import TextScorer
from ..utils.jsonl_jobs import JsonlJob
from ..utils.servers import RequestRefusedError, is_of_one_request
from . import find_benchmark
from .items import Benchmark, Item, Result
from .loading import load_items


@dataclass(frozen=True)
class BenchmarkRun:
    """The result of a run, how many texts were cut to `max_length`, and the rewards of each item."""

    result: Result
    cut_texts: int
    rewards: tuple[tuple[float, ...], ...] = ()


def run_benchmark(
    scorer: TextScorer,
    benchmark: str | Benchmark,
    data: str | Sequence[Item] | None = None,
    *,
    job: JsonlJob | None = None,
    model_key: str = "",
    is_truncating: bool = False,
) -> BenchmarkRun:
    """Score a model on a benchmark.

    Args:
        scorer: the model; its `batch_size` and `max_length` hold.
        benchmark: name (see `benchmarks.BENCHMARKS`).
        data: file or folder in the benchmark's published format, or items that `load_items` made of it; by default the
            published data from the Hub.
        job: where rewards are kept, so that a killed run resumes: one row per item, for any number of models. Each row
            says which model it is of, so the job has no settings.
        model_key: what the rewards depend on (see `fingerprint_model`).
        is_truncating: keep the last `max_length` tokens of longer texts; otherwise a longer text is an error.

    Raises:
        ValueError: an unknown benchmark, a row that cannot be read or scored (the message names file and line).
    """
    benchmark = find_benchmark(benchmark) if isinstance(benchmark, str) else benchmark
    if is_truncating and scorer.max_length is None:
        raise ValueError("Texts are to be cut, but the scorer has no `max_length` to cut them to.")
    if job is not None and not model_key:
        raise ValueError(
            "`job` is given without `model_key`: the rewards of several models would be mixed. Give both."
        )
    items = load_items(benchmark, data) if data is None or isinstance(data, str) else list(data)
    job = job or JsonlJob(None)
    known = {row["row"]: row for row in job.rows() if row["model"] == model_key}
    missing = [item for item in items if row_key(item) not in known]
    finished, label = len(items) - len(missing), f"{scorer.__name__} on {benchmark.name}"
    with job.appending() as append, tqdm(total=len(items), initial=finished, desc=label) as progress:
        for chunk in _chunks(missing, 8 * scorer.batch_size):
            scored = [{"model": model_key, **entry} for entry in _score(scorer, chunk, is_truncating)]
            append(*scored)
            known |= {entry["row"]: entry for entry in scored}
            progress.update(len(chunk))
    entries = [known[row_key(item)] for item in items]
    result = benchmark.aggregate(items, [entry["rewards"] for entry in entries])
    rewards = tuple(tuple(entry["rewards"]) for entry in entries)
    return BenchmarkRun(result, sum(entry["cut"] for entry in entries), rewards)


def _chunks(items: Sequence[Item], texts: int) -> Iterator[list[Item]]:
    """Items in chunks of at most so many candidates, with at least one item each."""
    chunk: list[Item] = []
    count = 0
    for item in items:
        count += len(item.candidates)
        if chunk and count > texts:
            yield chunk
            chunk, count = [], len(item.candidates)
        chunk.append(item)
    if chunk:
        yield chunk


def _score(scorer: TextScorer, items: Sequence[Item], is_truncating: bool) -> list[dict]:
    rows, cuts = [], []
    for item in items:
        encoded, cut = encode_item(scorer, item, is_truncating)
        rows += encoded
        cuts.append(cut)
    try:
        rewards = iter(scorer.score_ids(rows))
    except RequestRefusedError as error:
        if not is_of_one_request(error):
            raise
        if len(items) > 1:
            return [entry for item in items for entry in _score(scorer, [item], is_truncating)]
        raise type(error)(f"{items[0].location}: {error}", error.status, error.reason) from error
    entries = []
    for item, cut in zip(items, cuts, strict=True):
        values = [next(rewards) for _ in item.candidates]
        require_finite(item, values)
        entries.append({"row": row_key(item), "rewards": values, "cut": cut})
    return entries


def encode_item(scorer: TextScorer, item: Item, is_truncating: bool) -> tuple[list[list[int]], int]:
    """The tokens of each candidate after the prompt, and how many of these texts were cut.

    Raises:
        ValueError: a text that the scorer cannot read, or that is too long; the message names file and line.
    """
    encoded = [_encode(scorer, item, candidate) for candidate in item.candidates]
    limit = scorer.max_length
    is_long = [limit is not None and len(ids) > limit for ids in encoded]
    if any(is_long) and not is_truncating:
        raise ValueError(
            f"{item.location}: a text has {max(map(len, encoded))} tokens, more than max_length={limit}. Raise "
            "`max_length`, or set `truncate` to keep the last ones."
        )
    return encoded if limit is None else [ids[-limit:] for ids in encoded], sum(is_long)


def require_finite(item: Item, rewards: Sequence[float]) -> None:
    """Raise `ValueError` for rewards that are not finite; the message names file and line."""
    if not all(map(isfinite, rewards)):
        raise ValueError(
            f"{item.location}: the rewards are {list(rewards)}: a broken model, or one that needs another dtype."
        )


def _encode(scorer: TextScorer, item: Item, candidate: str) -> list[int]:
    try:
        return scorer.formatter.encode(item.prompt, [{"role": "assistant", "content": candidate}])
    except ValueError as error:
        raise ValueError(f"{item.location}: {error}") from None


def row_key(item: Item) -> str:
    """A short text for the prompt and the candidates."""
    content = json.dumps([item.prompt, item.candidates], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def fingerprint_model(name: str, revision: str | None = None, *, is_served: bool = False, **settings) -> str:
    """A short text of everything that rewards depend on: the model's name, its files or its commit, and settings."""
    files = "" if is_served else digest_of_model(name, revision)
    digest = hashlib.blake2b(files.encode(), digest_size=8)
    digest.update(json.dumps({"revision": revision, **settings}, sort_keys=True).encode())
    return f"{name}@{digest.hexdigest()}"
