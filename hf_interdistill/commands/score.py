"""`interdistill score`: rewards for a JSONL of completions or preferences, written line by line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..scoring.checks import check_text
from ..scoring.formatting import template_kwargs
from ..scoring.model_digests import digest_of_model
from ..scoring.opening import require_reward_model
from ..scoring.remote import RemoteRewardScorer
from ..scoring.text_scorer import TextScorer
from ..utils.fields import require_positive
from ..utils.json_lines import read_json_lines
from ..utils.jsonl_jobs import JsonlJob
from ..utils.servers import RequestRefusedError, ServerError, is_of_one_request
from ..utils.sources import refuse_same_file, require_file
from .scorers import load_scorer, refuse_unused_of_scorers
from .tables import print_metrics

_SIDES = {"completion": "reward", "chosen": "reward_chosen", "rejected": "reward_rejected"}


@dataclass
class ScoreArguments:
    """What to score.

    Args:
        model: reward model, adapter or ensemble, folder or Hub name.
        input: JSONL; each row has `completion`, or `chosen` and `rejected`, and may have `prompt`, `tools` and
            `chat_template_kwargs`; text or messages.
        output: JSONL to write, the rows with `reward`, or `reward_chosen` and `reward_rejected`. Rows that it already
            holds are not scored again.
        batch_size: completions per forward pass.
        max_length: longest text in tokens; a longer one is an error.
        device: where to run (`cpu`, `cuda`, ...); by default a GPU if there is one.
        revision, dtype, attn_implementation: how to load the model.
        reward_server: addresses of servers that have the model, which is then the name that it is served by.
        reward_api: how that server is asked: `interdistill` for `interdistill serve`, `classify` for vLLM.
        reward_tokenizer: with `classify`, name or folder of the served reward model's tokenizer; by default `model`.
        server_timeout: seconds that a request to the server may take.
    """

    model: str = field(metadata={"help": "Reward model, adapter or ensemble: folder or Hub name."})
    input: str = field(metadata={"help": "JSONL with `completion`, or `chosen` and `rejected`, and `prompt`."})
    output: str | None = field(default=None, metadata={"help": "JSONL to write; default: INPUT with .scored.jsonl."})
    batch_size: int = field(default=16, metadata={"help": "Completions per forward pass."})
    max_length: int | None = field(default=None, metadata={"help": "Longest text in tokens."})
    device: str | None = field(default=None, metadata={"help": "Where to run; default: a GPU if there is one."})
    revision: str | None = field(default=None, metadata={"help": "Revision of the model."})
    dtype: str = field(default="float32", metadata={"help": "Data type to load the model in."})
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention implementation."})
    reward_server: list[str] | None | str = field(  # noqa: RUF036  # in this order TRL's parser reads a list
        default=None, metadata={"help": "Addresses of servers with the model."}
    )
    reward_api: str = field(default="interdistill", metadata={"help": "Its kind: interdistill, or classify (vLLM)."})
    reward_tokenizer: str | None = field(default=None, metadata={"help": "Tokenizer of the served model."})
    server_timeout: float = field(default=300.0, metadata={"help": "Seconds that a request may take."})


ARGUMENTS = (ScoreArguments,)


def run(args: ScoreArguments) -> dict:
    """Score and write; returns counts and, for preferences, the accuracy, with ties counted separately."""
    source = require_file("input", args.input)
    target = Path(args.output or str(Path(args.input).with_suffix("")) + ".scored.jsonl")
    refuse_same_file({"`output`": target}, {"`input`": source})
    require_positive("batch_size", args.batch_size)
    require_positive("max_length", args.max_length, is_optional=True)
    total = sum(1 for _ in _read(source))
    if not total:
        raise ValueError(f"{source} holds no rows. Write one JSON object per line, with `completion`.")
    refuse_unused_of_scorers(args)
    if args.reward_server is None:
        require_reward_model(args.model, revision=args.revision)
    served = load_scorer(args, args.model, args.reward_server, args.reward_tokenizer) if args.reward_server else None
    with JsonlJob(target) as job:
        job.open(_settings(args, served))
        scored = sum(1 for _ in job.rows())
        if scored > total:
            raise ValueError(
                f"{target} holds {scored} rows, {source} only {total}: it is the output of another input."
            )
        scorer = served or load_scorer(args, args.model, None, None)
        job.complete(
            _read(source),
            partial(_score, scorer, source),
            chunk_size=(8 if args.reward_server is None else 32) * args.batch_size,
            total=total,
            compared=("prompt", *_SIDES, "tools", "chat_template_kwargs"),
            desc="Scoring",
        )
        summary = _summarize(job)
    print_metrics(f"Scores in {target}", {"all rows": summary})
    return summary


def _settings(args: ScoreArguments, served: TextScorer | None) -> dict:
    """What the rewards depend on."""
    settings = {"model": args.model, "revision": args.revision, "dtype": args.dtype, "input": args.input}
    if isinstance(served, RemoteRewardScorer):
        return {**settings, "served": served.told()}
    return {**settings, "files of `model`": digest_of_model(args.model, args.revision)}


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


def _score(scorer: TextScorer, source: Path, rows: list[_Row]) -> Iterator[dict]:
    """Rows with rewards, up to one that a server cannot score: an error names its line and side."""
    texts = []
    for row in rows:
        for side in _sides(row):
            try:
                texts.append(scorer.encode(row.get("prompt"), row[side], template_kwargs(row)))
            except ValueError as error:
                raise ValueError(f"{source}, line {row.line}, `{side}`: {error}") from error
    problem: Exception | None = None
    try:
        rewards: Sequence[float | None] = scorer.score_ids(texts)
    except (ServerError, ValueError) as error:
        if not isinstance(scorer, RemoteRewardScorer):
            raise
        problem, rewards = error, getattr(error, "rewards", ())
    given = iter(rewards)
    for finished, row in enumerate(rows):
        own = [next(given, None) for _ in _sides(row)]
        if problem is not None and None in own:
            yield from _up_to_the_fault(scorer, source, rows[finished:], problem)
            return
        yield {**row, **{_SIDES[side]: reward for side, reward in zip(_sides(row), own, strict=True)}}


def _up_to_the_fault(scorer: TextScorer, source: Path, rows: list[_Row], problem: Exception) -> Iterator[dict]:
    """Of rows of which one cannot be scored, those before it; then the error."""
    if isinstance(problem, ServerError) and not is_of_one_request(problem):
        raise problem  # that is the fault of no row
    if len(rows) > 1:
        middle = len(rows) // 2
        yield from _score(scorer, source, rows[:middle])
        yield from _score(scorer, source, rows[middle:])
        return
    (row,) = rows
    for side in _sides(row):
        try:
            scorer.score_ids([scorer.encode(row.get("prompt"), row[side], template_kwargs(row))])
        except ValueError as error:
            text = re.sub(r"^Row 0: ", "", str(error))
            message = f"{source}, line {row.line}, `{side}`: {text}"
            if isinstance(error, RequestRefusedError):
                raise type(error)(message, error.status, error.reason) from error
            raise ValueError(message) from error
    raise problem  # each side by itself is no fault


def _sides(row: dict) -> list[str]:
    return [side for side in _SIDES if side in row]


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
