"""`interdistill score`: rewards for a JSONL of completions or preferences, written line by line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..scoring.checks import check_text
from ..scoring.formatting import template_kwargs
from ..scoring.scorer import RewardScorer
from ..utils.devices import find_device
from ..utils.fields import require_positive
from ..utils.json_lines import read_json_lines
from ..utils.jsonl_jobs import JsonlJob
from ..utils.model_config import require_model
from ..utils.sources import refuse_same_file, require_file
from .tables import print_metrics

_SIDES = {"completion": "reward", "chosen": "reward_chosen", "rejected": "reward_rejected"}


@dataclass
class ScoreArguments:
    """What to score.

    Args:
        model: reward model or adapter, folder or Hub name.
        input: JSONL; each row has `completion`, or `chosen` and `rejected`, and may have `prompt`, `tools` and
            `chat_template_kwargs`; text or messages.
        output: JSONL to write, the rows with `reward`, or `reward_chosen` and `reward_rejected`. Rows that it already
            holds are not scored again.
        batch_size: completions per forward pass.
        max_length: longest text in tokens; a longer one is an error.
        device: where to run (`cpu`, `cuda`, ...); by default a GPU if there is one.
        revision, dtype, attn_implementation: how to load the model.
    """

    model: str = field(metadata={"help": "Reward model or adapter: folder or Hub name."})
    input: str = field(metadata={"help": "JSONL with `completion`, or `chosen` and `rejected`, and `prompt`."})
    output: str | None = field(default=None, metadata={"help": "JSONL to write; default: INPUT with .scored.jsonl."})
    batch_size: int = field(default=16, metadata={"help": "Completions per forward pass."})
    max_length: int | None = field(default=None, metadata={"help": "Longest text in tokens."})
    device: str | None = field(default=None, metadata={"help": "Where to run; default: a GPU if there is one."})
    revision: str | None = field(default=None, metadata={"help": "Revision of the model."})
    dtype: str = field(default="float32", metadata={"help": "Data type to load the model in."})
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention implementation."})


ARGUMENTS = (ScoreArguments,)


def run(args: ScoreArguments) -> dict:
    """Score and write; returns counts and, for preferences, the accuracy with ties apart."""
    source = require_file("input", args.input)
    target = Path(args.output or str(Path(args.input).with_suffix("")) + ".scored.jsonl")
    refuse_same_file({"`output`": target}, {"`input`": source})
    require_positive("batch_size", args.batch_size)
    require_positive("max_length", args.max_length, is_optional=True)
    total = sum(1 for _ in _read(source))
    if not total:
        raise ValueError(f"{source} holds no rows. Write one JSON object per line, with `completion`.")
    require_model("reward model", args.model, revision=args.revision)
    job = JsonlJob(target)
    job.open({"model": args.model, "revision": args.revision, "dtype": args.dtype, "input": args.input})
    scored = sum(1 for _ in job.rows())
    if scored > total:
        raise ValueError(f"{target} holds {scored} rows, {source} only {total}: it is the output of another input.")
    scorer = RewardScorer.from_pretrained(
        args.model,
        batch_size=args.batch_size,
        max_length=args.max_length,
        revision=args.revision,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
    ).to(find_device(args.device))
    job.complete(
        _read(source),
        partial(_score, scorer, source),
        chunk_size=8 * args.batch_size,
        total=total,
        compared=("prompt", *_SIDES),
        desc="Scoring",
    )
    summary = _summarize(job)
    print_metrics(f"Scores in {target}", {"all rows": summary})
    return summary


class _Row(dict):
    """A row of the input, and the number of its line."""

    def __init__(self, line: int, values: dict):
        super().__init__(values)
        self.line = line


def _read(path: Path) -> Iterator[_Row]:
    for number, row in read_json_lines(path):
        if ("chosen" in row) != ("rejected" in row) or not any(name in row for name in _SIDES):
            raise ValueError(
                f"{path}, line {number} has the keys {sorted(row)}; it needs `completion`, or `chosen` and `rejected`."
            )
        for name in ("prompt", *_SIDES):
            if name in row and not (name == "prompt" and row[name] is None):
                check_text(row[name], f"In {path}, line {number}: `{name}`")
        yield _Row(number, row)


def _score(scorer: RewardScorer, source: Path, rows: list[_Row]) -> list[dict]:
    texts, scored = [], []
    for row in rows:
        for side in filter(row.__contains__, _SIDES):
            try:
                texts.append(scorer.encode(row.get("prompt"), row[side], template_kwargs(row)))
            except ValueError as error:
                raise ValueError(f"{source}, line {row.line}, `{side}`: {error}") from error
    rewards = iter(scorer.score_ids(texts))
    for row in rows:
        scored.append({**row, **{_SIDES[side]: next(rewards) for side in _SIDES if side in row}})
    return scored


def _summarize(job: JsonlJob) -> dict:
    rewards, margins = [], []
    for row in job.rows():
        rewards += [row[name] for name in _SIDES.values() if name in row]
        if "reward_chosen" in row:
            margins.append(row["reward_chosen"] - row["reward_rejected"])
    summary = {"rows": len(rewards) - len(margins), "mean_reward": sum(rewards) / max(len(rewards), 1)}
    if margins:
        decided = [margin for margin in margins if margin != 0]
        if decided:
            summary["accuracy"] = sum(margin > 0 for margin in decided) / len(decided)
        summary["ties"] = len(margins) - len(decided)
    return summary
