"""Do a server's rewards equal ours? Compares `RewardScorer` with vLLM's endpoints or with transformers' pipeline.

Exit status: 0 if all rewards agree, 1 if some differ (the report says what it looks like), 2 if there is nothing to
compare (no server, another format, bad input).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from hf_interdistill import RewardScorer
from hf_interdistill.scoring.serving import (
    ENDPOINTS,
    FORMS,
    ServingText,
    pipeline_rewards,
    read_answer,
    request_body,
    serving_text,
)
from hf_interdistill.utils.data import load_preferences

# Largest difference that the arithmetic of the served dtype explains, for rewards up to 1; it grows with the largest.
TOLERANCES = {"float32": 1e-4, "float16": 3e-2, "bfloat16": 2.5e-1}
SIDES = ("completion", "chosen", "rejected")


@dataclass
class Answers:
    """A server's rewards, and the tokens that it says it read (`None` where it does not say)."""

    rewards: list[float] = field(default_factory=list)
    tokens: int | None = 0


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the reward model: folder or Hub name")
    parser.add_argument("--input", required=True, help="JSONL with `completion`, or `chosen` and `rejected`; `prompt`")
    other = parser.add_mutually_exclusive_group(required=True)
    other.add_argument("--url", help="running server, such as http://localhost:8000")
    other.add_argument("--pipeline", action="store_true", help="transformers' text-classification pipeline")
    parser.add_argument("--endpoint", default="classify", choices=ENDPOINTS)
    parser.add_argument("--form", default="tokens", choices=FORMS, help="what is sent")
    parser.add_argument("--served_model", help="name under which the server knows the model")
    parser.add_argument("--dtype", default="float32", choices=tuple(TOLERANCES), help="of the served model")
    parser.add_argument("--tolerance", type=float, help="largest difference allowed; default: by dtype")
    parser.add_argument("--limit", type=int, default=64, help="rows to compare")
    parser.add_argument("--batch_size", type=int, default=8, help="texts a request")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds to wait for an answer")
    return parser


def main(arguments: list[str] | None = None) -> int:
    args = argument_parser().parse_args(arguments)
    try:
        scorer = RewardScorer.from_pretrained(args.model)
        texts = read_texts(scorer, args.input, args.limit)
        expected = scorer.score_ids([text.ids for text in texts], is_progress_shown=True)
        answers = ask_pipeline(args, texts) if args.pipeline else ask_server(args, texts)
    except (ValueError, OSError) as error:
        print(f"Nothing to compare: {error}", file=sys.stderr)
        return 2
    scale = max(1.0, *(abs(reward) for reward in expected))
    tolerance = TOLERANCES[args.dtype] * scale if args.tolerance is None else args.tolerance
    return report(expected, answers, sum(len(text.ids) for text in texts), tolerance)


def read_texts(scorer: RewardScorer, path: str, limit: int) -> list[ServingText]:
    rows = load_preferences(path)["train"]
    rows = rows.select(range(min(limit, len(rows))))
    texts = [serving_text(scorer, row, side) for row in rows for side in SIDES if row.get(side) is not None]
    if not texts:
        raise ValueError(f"{path} has the columns {rows.column_names}; it needs one of {', '.join(SIDES)}.")
    return texts


def ask_pipeline(args, texts: list[ServingText]) -> Answers:
    from transformers import pipeline

    served = pipeline("text-classification", model=args.model, dtype=args.dtype)
    return Answers(pipeline_rewards(served, tqdm(texts, desc="Pipeline")), None)


def ask_server(args, texts: list[ServingText]) -> Answers:
    size = 1 if args.form == "messages" else args.batch_size
    answers = Answers()
    for start in tqdm(range(0, len(texts), size), desc="Server"):
        batch = texts[start : start + size]
        answer = post(f"{args.url.rstrip('/')}/{args.endpoint}", batch, args)
        answers.rewards += read_answer(answer, args.endpoint, len(batch))
        read = (answer.get("usage") or {}).get("prompt_tokens")
        answers.tokens = None if read is None or answers.tokens is None else answers.tokens + read
    return answers


def post(url: str, batch: list[ServingText], args) -> dict:
    body = json.dumps(request_body(batch, args.endpoint, args.form, args.served_model)).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=args.timeout) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        detail = error.read().decode(errors="replace")
        raise ValueError(f"{url} answered with status {error.code}: {detail:.300}") from None


def report(expected: list[float], answers: Answers, tokens: int, tolerance: float) -> int:
    """Print the comparison; 0 if all rewards agree within the tolerance, else 1."""
    differences = [abs(one - other) for one, other in zip(expected, answers.rewards, strict=True)]
    wrong = [number for number, difference in enumerate(differences) if not difference <= tolerance]
    table = Table(
        title=f"{len(expected)} rewards, {len(wrong)} differ by more than {tolerance:.3g}", title_justify="left"
    )
    for column in ("text", "ours", "theirs", "difference"):
        table.add_column(column, justify="right")
    for number in sorted(range(len(expected)), key=lambda i: -differences[i])[:5]:
        row = (expected[number], answers.rewards[number], differences[number])
        table.add_row(str(number), *(f"{value:.6f}" for value in row))
    Console(markup=False, emoji=False).print(table)
    if not wrong:
        print("PARITY: the rewards are the same.")
        return 0
    print("NO PARITY. " + likely_cause(expected, answers, tokens, tolerance))
    return 1


def likely_cause(expected: list[float], answers: Answers, tokens: int, tolerance: float) -> str:
    if answers.tokens is not None and answers.tokens != tokens:
        return (
            f"The server read {answers.tokens} tokens, training's format has {tokens}: special tokens were added "
            "twice, EOS is missing, or its chat template is another one. Send `--form tokens`: it leaves "
            "nothing to the server."
        )
    # the sigmoid's slope is at most 1/4, and so is what it leaves of a difference
    through_sigmoid = [1 / (1 + math.exp(-min(max(reward, -500), 500))) for reward in expected]
    if all(abs(one - other) <= tolerance / 4 for one, other in zip(through_sigmoid, answers.rewards, strict=True)):
        return (
            "The answers are sigmoid(reward): the server applies its activation. Start vLLM with "
            "--pooler-config '{\"use_activation\": false}', or serve an exported model (problem_type: regression)."
        )
    return (
        "The texts have as many tokens as in training, or the server does not say. Does it serve this model and this "
        "revision, in the dtype given with `--dtype`, and does it score the last token?"
    )


if __name__ == "__main__":
    sys.exit(main())
