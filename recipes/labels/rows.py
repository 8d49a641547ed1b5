"""Data for the recipes of this folder, made of the demo's preferences. The annotators are simulated.

`python recipes/labels/rows.py` writes `runs/labels/{shares,ties,rankings,attributes}`, each with train and test rows.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
DEMO = Path(__file__).parents[1] / "demo" / "preferences"
ANNOTATORS, AGREEMENT, TIES = 5, 0.8, 0.15  # how many, how often each prefers `chosen`, and how often calls it a tie


def votes(rng: random.Random) -> tuple[float, float]:
    """Shares of annotators that prefer `chosen`, and that call it a tie."""
    drawn = [rng.random() for _ in range(ANNOTATORS)]
    ties = sum(value < TIES for value in drawn)
    chosen = sum(TIES <= value < TIES + AGREEMENT * (1 - TIES) for value in drawn)
    return chosen / ANNOTATORS, ties / ANNOTATORS


def shares(row: Row, rng: random.Random) -> Row:
    """A pair with the share of annotators that prefer `chosen`, of those who prefer one."""
    chosen, tie = votes(rng)
    return {**row, "preference_probability": 0.5 if tie == 1 else chosen / (1 - tie)}


def ties(row: Row, rng: random.Random) -> Row:
    """A pair with the shares of those who prefer `chosen`, and of those who call it a tie."""
    chosen, tie = votes(rng)
    return {**row, "preference_probability": chosen, "tie_probability": tie}


def rankings(row: Row, rng: random.Random) -> Row:
    """Three responses: the chosen one, its first half, and the rejected one, in any order."""
    words = row["chosen"][0]["content"].split(" ")
    half = [{"role": "assistant", "content": " ".join(words[: (len(words) + 1) // 2])}]
    ranked = [(1, row["chosen"]), (2, half), (3, row["rejected"])]
    rng.shuffle(ranked)
    return {"prompt": row["prompt"], "completions": [r for _, r in ranked], "ranks": [rank for rank, _ in ranked]}


def attributes(row: Row, rng: random.Random) -> Row:
    """A pair with scores from 0 to 4: helpfulness by a simulated annotator, verbosity by the number of words."""
    scores = {}
    for side, least in (("chosen", 2), ("rejected", 0)):
        words = len(row[side][0]["content"].split())
        scores[f"{side}_scores"] = {"helpfulness": least + rng.randint(0, 2), "verbosity": min(words / 20, 4)}
    return {**row, **scores}


FORMS: dict[str, Callable[[Row, random.Random], Row]] = {
    "shares": shares,
    "ties": ties,
    "rankings": rankings,
    "attributes": attributes,
}


def write_rows(folder: Path, seed: int = 0) -> None:
    """Write all forms into folders of their names."""
    for name, form in FORMS.items():
        for split in ("train", "test"):
            rng = random.Random(f"{seed} {name} {split}")
            rows = [json.loads(line) for line in (DEMO / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
            pairs = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
            (folder / name).mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps(form(pair, rng), ensure_ascii=False) + "\n" for pair in pairs)
            (folder / name / f"{split}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="runs/labels", help="folder to write")
    write_rows(Path(parser.parse_args().output))
