"""Results of `interdistill eval` for a model's repository: a section of the card, and the Hub's own format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from .. import __version__
from ..hub.files import HubFile
from ..reward_benchmarks import find_benchmark
from ..utils.sources import require_file

_TASK = "default"


@dataclass(frozen=True)
class Evaluation:
    """A model's result on one benchmark.

    Args:
        benchmark: its name in `interdistill eval`. dataset: its data set on the Hub.
        total: the score, as the benchmark's authors count it. rows, ties: what it rests on.
        sections: scores of the authors' groups. missing: subsets that were not in the data.
        cut_texts: texts that were cut. date: day of the run, ISO 8601.
        interval: of the total, 95 %, `None` where it is not defined. chance: its score.
        baseline, baseline_score: the best one that needs no model.
        is_better: whether the interval of the difference from that lies above zero.
    """

    benchmark: str
    dataset: str
    total: float
    rows: int
    ties: int
    sections: dict[str, float]
    missing: list[str]
    cut_texts: int
    date: str
    interval: tuple[float | None, float | None]
    chance: float
    baseline: str
    baseline_score: float
    is_better: bool

    @property
    def notes(self) -> str:
        """How it was measured, in a sentence or two."""
        text = f"{self.rows} rows, {self.ties} ties, hf_interdistill {__version__}."
        text += f" Without {', '.join(self.missing)}." if self.missing else ""
        return text + (f" {self.cut_texts} texts were cut." if self.cut_texts else "")


def read_evaluations(path: str, model: str, repo_id: str) -> list[Evaluation]:
    """The results of one model in a `results.json`.

    Args:
        path: the file. model: folder of the model. repo_id: its repository; either name may stand in the file.

    Raises:
        ValueError: no such file, another format, or results of other models only.
    """
    file = require_file("eval_results", path)
    try:
        entries: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        models = list(dict.fromkeys(entry["model"] for entry in entries))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"`eval_results` is {path!r}, which holds no results of `interdistill eval` ({error}). Give its "
            "results.json."
        ) from None
    wanted = {Path(model).resolve(), repo_id}
    own = [name for name in models if name in wanted or Path(name).resolve() in wanted]
    if len(own) != 1:
        raise ValueError(
            f"{path} has results of {', '.join(models) or 'no model'}, but needs those of {model} once. Evaluate it "
            "under this name: `interdistill eval --model`."
        )
    date = datetime.fromtimestamp(file.stat().st_mtime, timezone.utc).date().isoformat()
    return [_evaluation(entry, date, path) for entry in entries if entry["model"] == own[0]]


def _evaluation(entry: dict[str, Any], date: str, path: str) -> Evaluation:
    try:
        values = {name: entry[name] for name in ("benchmark", "total", "rows", "ties", "sections", "missing")}
        interval, difference = entry["intervals"]["total"], entry["minus_best_baseline"]["total"]
        scores = {name: each["total"]["score"] for name, each in entry["baselines"].items()}
        values |= {"interval": (interval["low"], interval["high"]), "chance": scores["chance"]}
        values |= {"baseline": difference["baseline"], "baseline_score": scores[difference["baseline"]]}
        values["is_better"] = (difference["low"] or 0.0) > 0
    except KeyError as error:
        raise ValueError(f"A result in {path} lacks {error}. Run `interdistill eval` again.") from None
    dataset = find_benchmark(entry["benchmark"]).hub[0].path
    return Evaluation(**values, dataset=dataset, cut_texts=entry.get("cut_texts", 0), date=date)


def headline(evaluations: Sequence[Evaluation]) -> str:
    """Markdown for the top of a card: each total with its interval and the best baseline."""
    lines = []
    for each in evaluations:
        low, high = ("unknown" if end is None else f"{end:.3f}" for end in each.interval)
        text = (
            f"**Score {each.total:.3f}** (95 % interval {low} to {high}, {each.rows:,} rows) on "
            f"[{each.benchmark}](https://huggingface.co/datasets/{each.dataset}); chance is {each.chance:.3f}"
        )
        if each.baseline != "chance":
            text += f", the best baseline ({each.baseline}) has {each.baseline_score:.3f}"
        text += "" if each.is_better else ", and these rows do not show that the model is better than that"
        lines.append(f"{text}.")
    return "\n\n".join(lines)


def benchmark_section(evaluations: Sequence[Evaluation]) -> str:
    """Markdown: the totals, with their parts folded."""
    lines = ["## Benchmarks", "", "| benchmark | score | measured on |", "| --- | ---: | --- |"]
    for each in evaluations:
        link = f"[{each.benchmark}](https://huggingface.co/datasets/{each.dataset})"
        lines.append(f"| {link} | {each.total:.4f} | {each.notes} |")
    lines += ["", "<details>", "<summary>By section</summary>", ""]
    lines += ["| benchmark | section | score |", "| --- | --- | ---: |"]
    for each in evaluations:
        lines += [f"| {each.benchmark} | {name} | {score:.4f} |" for name, score in each.sections.items()]
    return "\n".join([*lines, "", "</details>"])


def evaluation_files(evaluations: Sequence[Evaluation]) -> list[HubFile]:
    """`.eval_results/BENCHMARK.yaml`, as the Hub reads them (https://huggingface.co/docs/hub/eval-results)."""
    files = []
    for each in evaluations:
        entry = {
            "dataset": {"id": each.dataset, "task_id": _TASK},
            "value": round(each.total, 6),
            "date": each.date,
            "notes": each.notes,
        }
        text = yaml.safe_dump([entry], sort_keys=False, allow_unicode=True)
        files.append(HubFile(f".eval_results/{each.benchmark}.yaml", text.encode()))
    return files
