"""Comparisons of tiny models, whose trainings run in forks, which cost no import."""

from __future__ import annotations

from pathlib import Path

import yaml

from hf_interdistill import CompareConfig
from hf_interdistill.cli import main
from support.pipeline import Pipeline
from support.processes import forked


def start_forked(words, log: Path, lock: int) -> int:
    """In place of `runs.start`: the same command in a fork of this process, which holds the lock as well."""
    status, printed = forked(lambda: main(list(words[words.index("hf_interdistill.cli") + 1 :])))
    log.write_text(printed, encoding="utf-8")
    return status


def recipe_of(pipeline: Pipeline, name: str = "recipe", **changes) -> Path:
    """A recipe of two steps of eight pairs, of whose keys some are changed."""
    return Path(pipeline.reward(name, **{"max_steps": 2, "save_strategy": "no", **changes})[-1])


def config_of(folder: Path, **changes) -> CompareConfig:
    """Settings that make a comparison quick: no diagnosis, few resamples, one seed."""
    return CompareConfig(**{"output": str(folder), "seeds": 1, "resamples": 200, "diagnosis_pairs": 0, **changes})


def starts(output: Path) -> dict[str, int]:
    """How often each run of a comparison was started."""
    records = sorted(output.glob("runs/*/*/run.json"))
    found = {"/".join(path.parts[-3:-1]): yaml.safe_load(path.read_text(encoding="utf-8")) for path in records}
    return {name: record["starts"] for name, record in found.items()}
