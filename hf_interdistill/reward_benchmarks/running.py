"""From items to rewards, with a file that a killed run goes on from, and from rewards to scores."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from tqdm.auto import tqdm

from ..scoring.scorer import RewardScorer
from ..utils.atomic_io import mend_lines
from . import find_benchmark
from .items import Benchmark, Item, Result
from .reading import load_items

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


@dataclass(frozen=True)
class Scored:
    """The result of a run, and how many texts were cut to `max_length`."""

    result: Result
    cut_texts: int


class RewardCache:
    """Rewards that are already known: a JSONL, one line an item, written as they come.

    Args:
        path: the file; it may hold several models.
        model: what the rewards depend on (see `model_key`).
    """

    def __init__(self, path: str | Path, model: str):
        self.path, self.model = Path(path), model
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._entries: dict[str, dict] = {}
        if self.path.exists():
            mend_lines(self.path)
            for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), 1):
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    raise ValueError(f"{self.path}, line {number} is damaged. Delete the line or the file.") from None
                if entry["model"] == model:
                    self._entries[entry["row"]] = entry

    def get(self, item: Item) -> dict | None:
        """The entry of an item: `rewards` and `cut`."""
        return self._entries.get(_row_key(item))

    def add(self, items: Sequence[Item], entries: Sequence[dict]) -> None:
        """Append, and return when it is on the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            for item, values in zip(items, entries, strict=True):
                entry = {"model": self.model, "row": _row_key(item), **values}
                self._entries[entry["row"]] = entry
                file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def run_benchmark(
    scorer: RewardScorer,
    benchmark: str | Benchmark,
    data: str | None = None,
    *,
    cache: RewardCache | None = None,
    is_truncating: bool = False,
) -> Scored:
    """Score a model on a benchmark.

    Args:
        scorer: the model; its `batch_size` and `max_length` hold.
        benchmark: name (see `benchmarks.BENCHMARKS`).
        data: file or folder in the benchmark's published format; by default the published data from the Hub.
        cache: where rewards are kept, so that a killed run goes on.
        is_truncating: keep the last `max_length` tokens of longer texts; otherwise a longer text is an error.

    Raises:
        ValueError: an unknown benchmark, a row that cannot be read or scored (the message names file and line).
    """
    benchmark = find_benchmark(benchmark) if isinstance(benchmark, str) else benchmark
    if is_truncating and scorer.max_length is None:
        raise ValueError("Texts are to be cut, but the scorer has no `max_length` to cut them to.")
    items = load_items(benchmark, data)
    entries = _entries(scorer, items, cache, is_truncating, benchmark.name)
    result = benchmark.aggregate(items, [entry["rewards"] for entry in entries])
    return Scored(result, sum(entry["cut"] for entry in entries))


def _entries(scorer, items: Sequence[Item], cache: RewardCache | None, is_truncating: bool, name: str) -> list[dict]:
    entries = [cache.get(item) if cache else None for item in items]
    todo = [number for number, entry in enumerate(entries) if entry is None]
    with tqdm(total=len(items), initial=len(items) - len(todo), desc=f"{scorer.__name__} on {name}") as progress:
        while todo:
            chunk = _next_chunk(todo, items, 8 * scorer.batch_size)
            todo = todo[len(chunk) :]
            scored = _score(scorer, [items[number] for number in chunk], is_truncating)
            if cache:
                cache.add([items[number] for number in chunk], scored)
            for number, entry in zip(chunk, scored, strict=True):
                entries[number] = entry
            progress.update(len(chunk))
    return entries


def _next_chunk(todo: Sequence[int], items: Sequence[Item], texts: int) -> list[int]:
    """The next items, up to so many candidates (but at least one item)."""
    chunk, count = [], 0
    for number in todo:
        count += len(items[number].candidates)
        if chunk and count > texts:
            break
        chunk.append(number)
    return chunk


def _score(scorer: RewardScorer, items: Sequence[Item], is_truncating: bool) -> list[dict]:
    rows, cuts = [], []
    for item in items:
        encoded = [_encode(scorer, item, candidate) for candidate in item.candidates]
        limit = scorer.max_length
        is_long = [limit is not None and len(ids) > limit for ids in encoded]
        if any(is_long) and not is_truncating:
            raise ValueError(
                f"{item.place}: a text has {max(map(len, encoded))} tokens, more than max_length={limit}. Raise "
                "`max_length`, or set `truncate` to keep the last ones."
            )
        rows += [ids[-limit:] if long else ids for ids, long in zip(encoded, is_long, strict=True)]
        cuts.append(sum(is_long))
    rewards = iter(scorer.score_ids(rows))
    entries = []
    for item, cut in zip(items, cuts, strict=True):
        values = [next(rewards) for _ in item.candidates]
        if not all(map(isfinite, values)):
            raise ValueError(
                f"{item.place}: the rewards are {values}: a broken model, or one that needs another dtype."
            )
        entries.append({"rewards": values, "cut": cut})
    return entries


def _encode(scorer: RewardScorer, item: Item, candidate: str) -> list[int]:
    try:
        return scorer.formatter.encode(item.prompt, [{"role": "assistant", "content": candidate}])
    except ValueError as error:
        raise ValueError(f"{item.place}: {error}") from None


def _row_key(item: Item) -> str:
    content = json.dumps([item.prompt, item.candidates], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def model_key(name: str, scorer: RewardScorer, **settings) -> str:
    """What rewards depend on, as a short text: the model's name, its files or its commit, and settings.

    For a folder it covers the contents of the small files (configuration, tokenizer, chat template) and size and time
    of the weights, so that a model trained again is scored again.
    """
    digest = hashlib.blake2b(digest_size=8)
    if Path(name).is_dir():
        for path in sorted(path for path in Path(name).iterdir() if path.is_file()):
            stat = path.stat()
            content = f"{stat.st_size} {stat.st_mtime_ns}".encode() if path.suffix in _WEIGHTS else path.read_bytes()
            digest.update(path.name.encode() + b"\0" + content + b"\0")
    else:
        digest.update(str(getattr(scorer.model.config, "_commit_hash", None)).encode())
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return f"{name}@{digest.hexdigest()}"
