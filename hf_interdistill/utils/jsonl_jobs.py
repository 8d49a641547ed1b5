"""The one resumable JSONL job: rows appended durably, settings kept beside them, shards of processes merged."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .atomic_io import require_writable, truncate_partial_line, write_atomically
from .processes import process_state

Row = dict[str, Any]


class JsonlJob:
    """A JSONL file that is written row by row. A killed run resumes it: no finished row is lost, none is repeated.

    An appended row is on the disk when the call returns. A partial line, which a kill may leave, is removed when the
    job is opened again. The settings that decide the rows are in `OUTPUT.settings.json`.

    Args:
        output: the file; with `None` the rows are kept in memory only.
        rank: this process, where several share the job. Its rows go to a shard, `OUTPUT.shard-RANK-of-WORLD_SIZE`,
            until `merge` moves the rows of all shards to the output. With `None` rows go to the output itself.
        world_size: number of processes.
    """

    def __init__(self, output: str | Path | None, rank: int | None = None, world_size: int = 1):
        self.output = None if output is None else Path(output)
        self._memory: list[Row] = []
        if self.output is not None:
            name = self.output.name
            self.settings_file = self.output.with_name(f"{name}.settings.json")
            shard = name if rank is None else f"{name}.shard-{rank:05d}-of-{world_size:05d}"
            self._own_file = self.output.with_name(shard)

    def open(self, settings: dict[str, Any] | None = None, overwrite: bool | None = None) -> None:
        """Compare the settings with those of an earlier run, and remove partial lines. One process does this.

        Args:
            settings: what decides the rows; `None` where each row says itself what it depends on.
            overwrite: start again where an earlier run had other settings; `None` where the user has no such option.

        Raises:
            ValueError: there are rows that were made with other or with unknown settings.
        """
        if self.output is None:
            return
        require_writable("output", str(self.output.parent), "results would be lost")
        if self.output.is_dir():
            raise ValueError(f"`output` is {str(self.output)!r}, a folder, but must be a file. Name a file in it.")
        if settings is not None:
            self._check_settings(json.loads(json.dumps(settings)), overwrite)
        for path in self._files():
            truncate_partial_line(path)

    def _check_settings(self, settings: dict[str, Any], overwrite: bool | None) -> None:
        earlier = _load_json(self.settings_file)
        if earlier == settings:
            return
        if not overwrite and any(path.stat().st_size for path in self._files()):
            raise ValueError(self._mismatch(earlier, settings, overwrite))
        for path in self._files():  # before the new settings are there: a kill in between must not mix two runs
            path.unlink()
        write_atomically(self.settings_file, json.dumps(settings, indent=2))

    def _mismatch(self, earlier: Any, settings: dict[str, Any], overwrite: bool | None) -> str:
        if overwrite is None:
            fix = "Delete it, or write to another output."
        else:
            fix = "Choose another `output`, or set `overwrite: true` to start again."
        if not isinstance(earlier, dict):
            return (
                f"{self.output} exists, but its settings ({self.settings_file.name}) are missing or damaged, so the "
                f"job cannot resume it. {fix}"
            )
        names = sorted(key for key in {*earlier, *settings} if earlier.get(key) != settings.get(key))
        return f"{self.output} was made with other settings ({', '.join(names)} differ). {fix}"

    def _files(self) -> list[Path]:
        """The output, if it is there, and all shards; none if the rows are kept in memory."""
        if self.output is None:
            return []
        shards = self.output.parent.glob(f"{_escape(self.output.name)}.shard-*-of-*")
        return [path for path in (self.output, *sorted(shards)) if path.is_file()]

    def rows(self) -> Iterator[Row]:
        """All rows that are written, of the output and of all shards.

        Raises:
            ValueError: a damaged line, named by file and number.
        """
        if self.output is None:
            yield from self._memory
            return
        for path in self._files():
            with path.open(encoding="utf-8", newline="\n") as lines:
                for number, line in enumerate(lines, start=1):
                    yield _parse(line, f"{path}, line {number}")

    def finished_ids(self) -> set:
        """The `id` of each row that is written."""
        return {row["id"] for row in self.rows()}

    @contextmanager
    def appending(self) -> Iterator[Callable[..., None]]:
        """A function that appends rows and returns when all of them are on the disk."""
        if self.output is None:
            yield lambda *rows: self._memory.extend(rows)
            return
        with self._own_file.open("a", encoding="utf-8", newline="\n") as file:

            def append(*rows: Row) -> None:
                file.write(_lines(rows))
                file.flush()
                os.fsync(file.fileno())

            yield append

    def complete(
        self,
        inputs: Iterable[Any],
        process: Callable[[list[Any]], Sequence[Row]],
        *,
        chunk_size: int,
        total: int | None = None,
        **bar: Any,
    ) -> None:
        """Append the rows that are missing at the end of the output, in the order of the inputs.

        Args:
            inputs: all inputs, in order; the first ones have their rows already. process: makes a row of each input of
                a list. chunk_size: inputs between two writes. total: number of inputs, if known.
            bar: options of the progress bar.
        """
        finished = sum(1 for _ in self.rows())
        inputs = islice(inputs, finished, None)
        initial = finished if total is None else min(finished, total)
        with self.appending() as append, tqdm(total=total, initial=initial, **bar) as progress:
            while chunk := list(islice(inputs, chunk_size)):
                append(*process(chunk))
                progress.update(len(chunk))

    def merge(self, order: Sequence) -> None:
        """Write the rows with these ids to the output, in this order, then remove the shards."""
        rows = {row["id"]: row for row in self.rows()}
        ordered = [rows[name] for name in order if name in rows]
        if self.output is None:
            self._memory = ordered
            return
        write_atomically(self.output, _lines(ordered))
        for path in self._files():
            if path != self.output:
                path.unlink()


def run_sharded_job(
    output: str | Path,
    rows: Sequence[Row],
    work: Callable[[JsonlJob, Sequence[Row]], None],
    *,
    settings: dict[str, Any],
    overwrite: bool,
) -> tuple[JsonlJob, int]:
    """Run a job over the rows that have no result yet, shared by the processes of this launch, and merge the results.

    Args:
        output: the file. rows: all rows, each with an `id`. settings, overwrite: as in `JsonlJob.open`.
        work: appends a result with the same `id` for each row of this process. It is not called if nothing is missing.

    Returns:
        The job, and for how many rows results were missing.
    """
    state = process_state()
    job = JsonlJob(output, state.process_index, state.num_processes)
    if state.is_main_process:
        job.open(settings, overwrite)
    state.wait_for_everyone()
    finished = job.finished_ids()
    missing = [row for row in rows if row["id"] not in finished]
    state.wait_for_everyone()  # no process writes before all have read
    if missing:
        work(job, missing[state.process_index :: state.num_processes])
    state.wait_for_everyone()
    if state.is_main_process:
        job.merge([row["id"] for row in rows])
    state.wait_for_everyone()
    return job, len(missing)


def _lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _parse(line: str, place: str) -> Row:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        raise ValueError(f"{place} is damaged: it is not JSON. Delete the line or the file, then run again.") from None


def _load_json(path: Path) -> Any:
    """Content of a JSON file, `None` if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _escape(name: str) -> str:
    """A file name for `glob`."""
    return re.sub(r"([*?\[])", r"[\1]", name)
