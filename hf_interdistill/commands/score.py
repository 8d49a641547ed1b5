"""`interdistill score`: rewards for a JSONL of completions or preferences, written line by line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tqdm.auto import tqdm

from ..scoring.scorer import RewardScorer
from ..utils.atomic_io import mend_lines, write_whole
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
        batch_size: completions a forward pass.
        max_length: longest text in tokens; a longer one is an error.
        device: where to run (`cpu`, `cuda`, ...); by itself a GPU if there is one.
        revision, dtype, attn_implementation: how to load the model.
    """

    model: str = field(metadata={"help": "Reward model or adapter: folder or Hub name."})
    input: str = field(metadata={"help": "JSONL with `completion`, or `chosen` and `rejected`, and `prompt`."})
    output: str | None = field(default=None, metadata={"help": "JSONL to write; default: INPUT with .scored.jsonl."})
    batch_size: int = field(default=16, metadata={"help": "Completions a forward pass."})
    max_length: int | None = field(default=None, metadata={"help": "Longest text in tokens."})
    device: str | None = field(default=None, metadata={"help": "Where to run; default: a GPU if there is one."})
    revision: str | None = field(default=None, metadata={"help": "Revision of the model."})
    dtype: str = field(default="float32", metadata={"help": "Data type to load the model in."})
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention implementation."})


ARGUMENTS = (ScoreArguments,)


def run(args: ScoreArguments) -> dict:
    """Score and write; returns counts and, for preferences, the accuracy with ties apart."""
    import torch

    source, target = Path(args.input), Path(args.output or str(Path(args.input).with_suffix("")) + ".scored.jsonl")
    done = _completed_lines(target)
    total = sum(1 for line in source.open(encoding="utf-8") if line.strip())
    if done > total:
        raise ValueError(f"{target} holds {done} rows, {source} only {total}: it is the output of another input.")
    _require_same_settings(target, args, done)
    scorer = RewardScorer.from_pretrained(
        args.model,
        batch_size=args.batch_size,
        max_length=args.max_length,
        revision=args.revision,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
    ).to(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rows = islice(_read(source), done, None)
    with target.open("a", encoding="utf-8") as output, tqdm(total=total, initial=done, desc="Scoring") as progress:
        while chunk := list(islice(rows, 8 * args.batch_size)):
            for row in _score(scorer, chunk):
                output.write(json.dumps(row, ensure_ascii=False) + "\n")
            output.flush()
            os.fsync(output.fileno())
            progress.update(len(chunk))
    summary = _summary(target)
    print_metrics(f"Scores in {target}", {"all rows": summary})
    return summary


def _read(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is no JSON: {error}") from None
            if "completion" not in row and not {"chosen", "rejected"} <= set(row):
                raise ValueError(
                    f"{path}, line {number} has the keys {sorted(row)}; it needs `completion`, or `chosen` and "
                    "`rejected`."
                )
            yield row


def _completed_lines(path: Path) -> int:
    """Rows that an earlier run finished; a line that was cut off in the middle is removed."""
    if not path.exists():
        return 0
    mend_lines(path)
    return path.read_bytes().count(b"\n")


def _require_same_settings(target: Path, args: ScoreArguments, done: int) -> None:
    """Never mix the rewards of two models, or of two inputs, in one file."""
    settings = {"model": args.model, "revision": args.revision, "dtype": args.dtype, "input": args.input}
    path = target.with_name(target.name + ".settings.json")
    if done:
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if earlier != settings:
            raise ValueError(
                f"{target} holds {done} rows scored with {earlier or 'unknown settings'}, this run has {settings}. "
                "Delete it, or write to another `output`."
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(settings))


def _score(scorer: RewardScorer, rows: list[dict]) -> list[dict]:
    items = [(row, side) for row in rows for side in _SIDES if side in row]
    rewards = scorer(
        [row.get("prompt") for row, _ in items],
        [row[side] for row, side in items],
        tools=[row.get("tools") for row, _ in items],
        chat_template_kwargs=[row.get("chat_template_kwargs") for row, _ in items],
    )
    scored = {id(row): dict(row) for row in rows}
    for (row, side), reward in zip(items, rewards, strict=True):
        scored[id(row)][_SIDES[side]] = reward
    return list(scored.values())


def _summary(path: Path) -> dict:
    rewards, margins = [], []
    for row in _read(path):
        rewards += [row[name] for name in _SIDES.values() if name in row]
        if "reward_chosen" in row:
            margins.append(row["reward_chosen"] - row["reward_rejected"])
    summary = {"rows": len(rewards) - len(margins), "mean_reward": sum(rewards) / max(len(rewards), 1)}
    if margins:
        decided = [margin for margin in margins if margin != 0]
        summary["accuracy"] = sum(margin > 0 for margin in decided) / max(len(decided), 1)
        summary["ties"] = len(margins) - len(decided)
    return summary
