"""Where the data are, and the preferences that the tests train on."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED_DATA = ROOT.parent / "shared" / "data"


def read_rows(split: str = "train") -> list[dict]:
    path = ROOT / "recipes" / "demo" / "preferences" / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def corpus() -> list[str]:
    return [message["content"] for row in read_rows() for part in ("prompt", "chosen") for message in row[part]]
