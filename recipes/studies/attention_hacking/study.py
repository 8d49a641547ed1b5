"""Does interaction distillation make reward models better, and does it, rather than any map, do so?

`python recipes/studies/attention_hacking/study.py [--config study.yaml] [--minutes N] [--report]` from the project's
root: hyper-parameters on validation rows, then the runs of each grid, then tables and plots. Every finished run is in
`runs.json.xz`; a stopped study resumes after the last one. Several processes may run the same command. The results are
in `results.json` and, for a reader, `table.md`; `report.py` prints the long tables.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from arms import Arm
from claims import claim
from measures import decode_outcomes
from records import PACKED, read_runs, rounded, write_runs
from report import write_report
from rich.console import Console
from running import Bench, Run, checksum, with_changes
from students import embedded_encoder

HERE = Path(__file__).parent
ALIKE = 0.02  # of the loss of two language models pretrained alike on two machines
console = Console(markup=False, emoji=False)


class Study:
    """All runs of a config, each done once.

    Args:
        config: what `study.yaml` holds. deadline: seconds on `time.monotonic` after which no run is begun.

    Raises:
        ValueError: a finished run was made with other settings than those of the config, or with another
            teacher than the next one; names that are not there.
    """

    def __init__(self, config: dict[str, Any], deadline: float = float("inf")):
        self.config, self.deadline = config, deadline
        self.bench = Bench(config, config["encoder"] or embedded_encoder())
        self.arms = {name: Arm(**settings) for name, settings in config["arms"].items()}
        self.path = Path(config["results_dir"]) / PACKED
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.results: list[dict[str, Any]] = []
        self._reload()
        self.choices: dict[tuple[str, str], dict[str, Any]] = {}

    def run(self) -> list[dict[str, Any]]:
        """Everything that is not done yet and that no other process is at; returns all records."""
        if self._select():
            self._run_grids()
        self._pack()
        return self.results

    def _run_grids(self) -> None:
        for grid in self.config["grids"]:
            for run in _runs(grid):
                if not self._once(run, self._arm(run)):
                    return
                self._ensembles(grid, run)

    # Hyper-parameters

    def _select(self) -> bool:
        """Try the candidates of each choice on validation rows; `False` if time ran out."""
        for choice in self.config["selection"]:
            tried = [_candidate_runs(choice, candidate) for candidate in choice["candidates"]]
            for is_waiting in (False, True):  # first those that no other process is at
                for runs, candidate in zip(tried, choice["candidates"], strict=True):
                    for run in runs:
                        if not self._once(run, with_changes(self._arm(run), candidate), is_waiting):
                            return False
            losses = [np.mean([self._record(run)["validation"]["scaled_nll"] for run in runs]) for runs in tried]
            best = choice["candidates"][int(np.argmin(losses))]
            for arm in choice["for"] if choice["for"] != "all" else self.arms:
                chosen = self.choices.setdefault((choice["student"], arm), {})
                chosen |= best
        return True

    def _arm(self, run: Run) -> Arm:
        if run.arm not in self.arms:
            raise ValueError(f"There is no arm {run.arm!r}; the arms are {', '.join(self.arms)}.")
        return with_changes(self.arms[run.arm], self.choices.get((run.student, run.arm), {}))

    # Runs

    def _once(self, run: Run, arm: Arm, is_waiting: bool = False) -> bool:
        """Carry a run out unless it is done or another process is at it; `False` if there is no time for it.

        Args:
            is_waiting: for the other process, so that the run is done afterwards.
        """
        settings = self.bench.settings(run, arm)
        if self._record(run) is None:
            if time.monotonic() > self.deadline:
                console.print(f"Out of time before {run.id}; the same command resumes there.")
                return False
            with claim(self.bench.lock_path(run.id), is_waiting=is_waiting) as is_ours:
                if not is_ours:
                    return True
                self._reload()
                if self._record(run) is None:
                    self._carry_out(run, arm, settings)
        self._require_settings(run, settings)
        return True

    def _carry_out(self, run: Run, arm: Arm, settings: dict[str, Any]) -> None:
        console.rule(run.id)
        teacher = self.bench.teacher_mark(arm.teacher, run.train, run.condition)
        self._require_one_teacher(run, teacher)
        pretraining = self.bench.pretraining_mark(run.student, run.train)
        self._require_one_beginning(run, pretraining)
        outcome = self.bench.carry_out(run, arm, settings)
        own = {"checksum": checksum(settings), "settings": settings, "teacher": teacher}
        own |= {"pretraining": pretraining} if pretraining else {}
        self._add({"id": run.id, **asdict(run), **own, **rounded(outcome)})
        gc.collect()

    def _require_settings(self, run: Run, settings: dict[str, Any]) -> None:
        record = self._record(run)
        if record["checksum"] != checksum(settings):
            raise ValueError(
                f"{run.id} is in {self.path.name}, but was made with other settings. Remove it from there "
                f"(`unxz` makes a JSON file of it that is read too), or choose other folders (`results_dir`, "
                f"`output_dir`). Settings now: {json.dumps(settings)}; "
                f"then: {json.dumps(record['settings'])}"
            )

    def _require_one_teacher(self, run: Run, teacher: dict[str, Any] | None) -> None:
        """Arms can only be compared if they had the same teacher, or one fitted alike on another machine."""
        group = {name: getattr(run, name) for name in ("train", "student", "condition")}
        for record in self.results:
            other = record["teacher"]
            if not teacher or not other or not group.items() <= record.items() or other["kind"] != teacher["kind"]:
                continue
            if not _are_alike(teacher, other):
                raise ValueError(
                    f"{run.id} would have another teacher ({teacher}) than {record['id']} had ({other}). Give the "
                    f"same one (`teachers`), or remove the runs of the other one from {self.path.name}."
                )

    def _require_one_beginning(self, run: Run, pretraining: dict[str, Any] | None) -> None:
        """Arms can only be compared if they began as the same language model, or one pretrained alike elsewhere."""
        for record in self.results:
            other = record.get("pretraining")
            if not pretraining or not other or (record["train"], record["student"]) != (run.train, run.student):
                continue
            is_same = pretraining["checksum"] == other["checksum"]
            if not is_same and abs(pretraining["loss"] / other["loss"] - 1) > ALIKE:
                raise ValueError(
                    f"{run.id} would begin as another language model ({pretraining}) than {record['id']} did "
                    f"({other}). Remove the runs of the other one from {self.path.name}, or choose another "
                    f"`results_dir`."
                )

    def _record(self, run: Run) -> dict[str, Any] | None:
        return next((record for record in self.results if record["id"] == run.id), None)

    def _reload(self) -> None:
        """Find what other processes have added since."""
        self.results = read_runs(self.path.parent)

    def _add(self, record: dict[str, Any]) -> None:
        with claim(self.bench.lock_path(self.path.name), is_waiting=True):
            self._reload()
            if self._record(Run(**{field.name: record[field.name] for field in fields(Run)})):
                return
            self.results.append(record)
            write_runs(self.path.parent, self.results)
        tests = "  ".join(f"{name} {decode_outcomes(test).mean():.3f}" for name, test in record["tests"].items())
        seconds = record.get("seconds", {})
        console.print(f"{record['id']}: validation {record['validation']['accuracy']:.3f}  {tests}  {seconds}")

    def _pack(self) -> None:
        """Write the file once more, as small as it gets; after each run that would take too long."""
        with claim(self.bench.lock_path(self.path.name), is_waiting=True):
            self._reload()
            write_runs(self.path.parent, self.results, is_complete=True)

    # Ensembles

    def _ensembles(self, grid: dict[str, Any], last: Run) -> None:
        """The ensembles whose members are all done with this run."""
        for name, ensemble in self.config["ensembles"].items():
            if last.arm != ensemble["of"]:
                continue
            seeds = grid["seed"]
            for place, seed in enumerate(seeds if len(seeds) >= ensemble["members"] else []):
                chosen = [seeds[(place + step) % len(seeds)] for step in range(ensemble["members"])]
                members = [Run(last.train, last.student, last.condition, last.arm, member) for member in chosen]
                whole = Run(last.train, last.student, last.condition, name, seed)
                if self._record(whole) is None and all(self._record(member) for member in members):
                    self._add_ensemble(whole, members, ensemble)

    def _add_ensemble(self, whole: Run, members: Sequence[Run], ensemble: dict[str, Any]) -> None:
        paths = [self.bench.rewards_path(member) for member in members]
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            console.print(f"{whole.id} is left out: rewards of its members were made elsewhere ({missing[0]}).")
            return
        rewards = combine([dict(np.load(path)) for path in paths], ensemble["rule"])
        settings = {**ensemble, "members": [member.id for member in members]}
        hardware = self._record(members[0])["hardware"]
        outcome = {**self.bench.outcome(rewards), "diagnosis": None, "hardware": hardware}
        mark = checksum([settings, *(self._record(member)["checksum"] for member in members)])
        own = {"checksum": mark, "settings": settings, "teacher": None}
        self._add({"id": whole.id, **asdict(whole), **own, **rounded(outcome)})


def combine(members: Sequence[dict[str, np.ndarray]], rule: str) -> dict[str, np.ndarray]:
    """Rewards of an ensemble: the mean, or the worst, of its members' rewards in units of each member's spread.

    Center and spread of a member are those of its rewards on the validation rows.
    """
    if rule not in ("mean", "worst"):
        raise ValueError(f"`rule` is {rule!r}, but must be `mean` or `worst`.")
    names = members[0].keys()
    scaled = {
        name: np.stack([(m[name] - m["validation"].mean()) / m["validation"].std() for m in members]) for name in names
    }
    return {name: values.mean(0) if rule == "mean" else values.min(0) for name, values in scaled.items()}


def _are_alike(teacher: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two teachers are the same, or judge held-out pairs alike, within one standard error of a difference.

    The settings that they were fitted with belong to those of a run and are compared there; with the same ones,
    teachers that were fitted on two machines differ in rounding, and after some hundred steps in a few pairs.
    """
    if teacher["checksum"] == other["checksum"]:
        return True
    accuracies = (teacher["accuracy"], other["accuracy"])
    if None in accuracies or teacher["pairs"] != other["pairs"]:
        return False
    mean = sum(accuracies) / 2
    return abs(accuracies[0] - accuracies[1]) <= math.sqrt(2 * mean * (1 - mean) / teacher["pairs"])


def _candidate_runs(choice: dict[str, Any], candidate: dict[str, Any]) -> list[Run]:
    """The runs that try one candidate of a choice, one a seed."""
    name = ",".join(f"{key}={value}" for key, value in candidate.items())
    return [Run(choice["train"], choice["student"], "clean", choice["arm"], seed, name) for seed in choice["seeds"]]


def _runs(grid: dict[str, Any]) -> Iterator[Run]:
    """The runs of a grid, seeds outermost, so that a study that was stopped is balanced."""
    names = ("seed", "train", "student", "condition", "arm")
    for values in itertools.product(*(grid[name] for name in names)):
        yield Run(**dict(zip(names, values, strict=True)))


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run the study of a config file; returns the records."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default=str(HERE / "study.yaml"), help="settings of the study")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so many minutes")
    parser.add_argument("--report", action="store_true", help="only write tables and plots of what is there")
    options = parser.parse_args(arguments)
    config = yaml.safe_load(Path(options.config).read_text(encoding="utf-8"))
    study = Study(config, time.monotonic() + 60 * options.minutes)
    results = study.results if options.report else study.run()
    write_report(results, config, Path(config["results_dir"]))
    return results


if __name__ == "__main__":
    logging.getLogger("hf_interdistill").setLevel(logging.ERROR)
    torch.backends.cuda.matmul.allow_tf32 = True  # on a GPU alone: the processor's products stay as they are
    main()
