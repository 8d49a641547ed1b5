"""The one resumable JSONL job: rows appended durably, settings kept beside them, shards of processes merged."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from tqdm.auto import tqdm

from .atomic_io import require_writable_file, truncate_partial_line, write_atomically
from .changed_fields import describe_change
from .errors import escape_half_characters
from .file_locks import FileLock

Row = dict[str, Any]
ERROR = "error"  # the field of a row that says why there is no result


def error_field(message: str) -> Row:
    """The field of a row that has no result; half characters in the message are escaped."""
    return {ERROR: escape_half_characters(message)}


class JsonlJob:
    """A JSONL file that is written row by row. A killed run resumes it: no finished row is lost, none is repeated.

    An appended row is on the disk when the call returns. A partial line, which a kill may leave, is removed when the
    job is opened again. The settings that decide the rows are in `OUTPUT.settings.json`. From `open` to `close`, or to
    the end of a `with` block, no other process can open it.

    Args:
        output: the file; with `None` the rows are kept in memory only.
        rank: this process, where several share the job. Its rows go to a shard, `OUTPUT.shard-RANK-of-WORLD_SIZE`,
            until `merge` moves the rows of all shards to the output. With `None` rows go to the output itself.
        world_size: number of processes.
    """

    def __init__(self, output: str | Path | None, rank: int | None = None, world_size: int = 1):
        self.output = None if output is None else Path(output)
        self._memory: list[Row] = []
        self._wait_for_everyone: Callable[[], None] | None = None
        self._replacing: dict[str, Any] | None = None  # settings, while the rows of an earlier run are still there
        if self.output is not None:
            name = self.output.name
            self.settings_file = self.output.with_name(f"{name}.settings.json")
            shard = name if rank is None else f"{name}.shard-{rank:05d}-of-{world_size:05d}"
            self._own_file = self.output.with_name(shard)
            self._lock = FileLock(self.output)

    def __enter__(self) -> JsonlJob:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes open the job."""
        if self.output is not None:
            self._lock.release()

    def share(self, wait_for_everyone: Callable[[], None]) -> None:
        """Share the job with other processes, all of which call `appending`.

        Args:
            wait_for_everyone: a barrier of all of them.
        """
        self._wait_for_everyone = wait_for_everyone

    def open(
        self,
        settings: dict[str, Any] | None = None,
        overwrite: bool | None = None,
        inputs: Sequence[Row] | None = None,
        compared: Sequence[str] = ("prompt",),
    ) -> None:
        """Compare settings and inputs with those of an earlier run, and remove partial lines. One process does this.

        Args:
            settings: what decides the rows; `None` where each row itself records what it depends on.
            overwrite: start again where an earlier run had other settings or inputs; `None` where the user has no such
                option. The earlier rows are removed when the first new one is written.
            inputs: the rows that results are made of, each with an `id`, where results repeat their input's fields.
            compared: these fields.

        Raises:
            ValueError: there are rows that were made with other or with unknown settings, or of other inputs; or
                another process has opened the job.
        """
        if self.output is None:
            return
        require_writable_file("output", self.output, "results would be lost")
        self._lock.acquire()
        try:
            self._open(json.loads(json.dumps(settings)), overwrite, inputs, compared)
        except BaseException:
            self.close()
            raise

    def _open(
        self,
        settings: dict[str, Any] | None,
        overwrite: bool | None,
        inputs: Sequence[Row] | None,
        compared: Sequence[str],
    ) -> None:
        if settings is not None and (problem := self._changed_settings(settings, overwrite)):
            self._replace(problem, settings, overwrite)
            return
        for path in self._files():
            truncate_partial_line(path)
        if inputs is not None and (problem := self._changed_input(inputs, compared)):
            self._replace(f"{problem} {_fix(overwrite)}", settings or {}, overwrite)

    def _replace(self, problem: str, settings: dict[str, Any], overwrite: bool | None) -> None:
        if not overwrite:
            raise ValueError(problem)
        self._replacing = settings

    def _changed_input(self, inputs: Sequence[Row], compared: Sequence[str]) -> str | None:
        """What is wrong if there is a result of an input that has changed or is gone, else `None`."""
        given = {row["id"]: row for row in inputs}
        for row in self.rows():
            name = row["id"]
            if ERROR in row:
                continue
            if name not in given:
                return f"{self.output} holds a result for id {name!r}, but there is no such row in the input any more."
            if change := describe_change(row, given[name], compared):
                return f"{self.output} holds a result for id {name!r}, but {change}"
        return None

    def _changed_settings(self, settings: dict[str, Any], overwrite: bool | None) -> str | None:
        """What is wrong if there are rows of other settings, else `None`; then these settings are written.

        Raises:
            ValueError: there is no file of settings, so that the rows may be no job's.
        """
        earlier = _load_json(self.settings_file)
        if earlier == settings:
            return None
        if any(path.stat().st_size for path in self._files()):
            if not self.settings_file.exists():
                raise ValueError(
                    f"{self.output} exists, but its settings ({self.settings_file.name}) are missing: it may be no "
                    "output of a job, so it is neither resumed nor overwritten. Choose another `output`, or remove it."
                )
            return self._mismatch(earlier, settings, overwrite)
        self._start_anew(settings)
        return None

    def _start_anew(self, settings: dict[str, Any]) -> None:
        """Remove the rows of an earlier run, before the new settings are there: a kill in between must not mix two."""
        for path in self._files():
            path.unlink()
        write_atomically(self.settings_file, json.dumps(settings, indent=2))
        self._replacing = None

    def require_same_models(self, told: dict[str, Any]) -> None:
        """Compare what servers tell of their models with what they told an earlier run. One process does this.

        It is kept in `OUTPUT.served.json`, since a job that is complete asks no server.

        Raises:
            ValueError: there are results of another model behind the same name.
        """
        if self.output is None:
            return
        file = self.output.with_name(f"{self.output.name}.served.json")
        earlier, told = _load_json(file), json.loads(json.dumps(told))
        if earlier is not None and earlier != told and self.finished_ids():
            raise ValueError(
                f"{self.output} was made with another model behind the same name: the server told {earlier}, and now "
                f"tells {told}. {_fix(None)}"
            )
        write_atomically(file, json.dumps(told, indent=2))

    def _mismatch(self, earlier: Any, settings: dict[str, Any], overwrite: bool | None) -> str:
        fix = _fix(overwrite)
        if not isinstance(earlier, dict):
            return (
                f"{self.output} exists, but its settings ({self.settings_file.name}) are damaged, so the job cannot "
                f"resume it. {fix}"
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
        """All rows that are written, of the output and of all shards, but not those that are to be replaced.

        Raises:
            ValueError: a damaged line, named by file and number.
        """
        if self.output is None:
            yield from self._memory
            return
        for path in self._files() if self._replacing is None else ():
            with path.open(encoding="utf-8", newline="\n") as lines:
                for number, line in enumerate(lines, start=1):
                    yield _parse(line, f"{path}, line {number}")

    def finished_ids(self) -> set:
        """The `id` of each row that is written and has no error."""
        return {row["id"] for row in self.rows() if ERROR not in row}

    @contextmanager
    def appending(self) -> Iterator[Callable[..., None]]:
        """A function that appends rows and returns when all of them are on the disk.

        The first row removes those that are to be replaced. Where several processes share the job, they are removed
        when all have come here: none may remove what another has written.
        """
        if self.output is None:
            yield lambda *rows: self._memory.extend(rows)
            return
        if self._wait_for_everyone is not None:
            self._wait_for_everyone()
            self._remove_replaced()
            self._wait_for_everyone()
        with ExitStack() as stack:
            files: list[IO[str]] = []

            def append(*rows: Row) -> None:
                if not files:
                    self._remove_replaced()
                    files.append(stack.enter_context(self._own_file.open("a", encoding="utf-8", newline="\n")))
                files[0].write(_lines(rows))
                files[0].flush()
                os.fsync(files[0].fileno())

            yield append

    def _remove_replaced(self) -> None:
        if self._replacing is not None:
            self._start_anew(self._replacing)

    def complete(
        self,
        inputs: Iterable[Any],
        process: Callable[[list[Any]], Iterable[Row]],
        *,
        chunk_size: int,
        total: int | None = None,
        compared: Sequence[str] = (),
        **bar: Any,
    ) -> None:
        """Append the rows that are missing at the end of the output, in the order of the inputs.

        Args:
            inputs: all inputs, in order; the first ones have their rows already. process: makes a row of each input of
                a list; where it raises, the rows that it has yielded are written.
            chunk_size: inputs between two writes. total: number of inputs, if known.
            compared: fields that a row repeats of its input. bar: options of the progress bar.

        Raises:
            ValueError: a row was made of another input than the one in its place now.
        """
        inputs, finished = iter(inputs), 0
        for finished, (row, given) in enumerate(zip(self.rows(), inputs, strict=False), start=1):
            if change := describe_change(row, given, compared):
                raise ValueError(f"{self.output} holds a result in line {finished}, but {change} {_fix(None)}")
        initial = finished if total is None else min(finished, total)
        with self.appending() as append, tqdm(total=total, initial=initial, **bar) as progress:
            while chunk := list(islice(inputs, chunk_size)):
                rows: list[Row] = []
                try:
                    for row in process(chunk):
                        rows.append(row)  # those before an error are kept
                finally:
                    append(*rows)
                progress.update(len(chunk))

    def merge(self, order: Sequence) -> None:
        """Write the rows with these ids to the output, in this order, then remove the shards.

        Of several rows with an id, the last one without an error counts.
        """
        rows: dict[Any, Row] = {}
        for row in self.rows():
            if ERROR not in row or ERROR in rows.get(row["id"], row):
                rows[row["id"]] = row
        ordered = [rows[name] for name in order if name in rows]
        if self.output is None:
            self._memory = ordered
            return
        self._remove_replaced()
        write_atomically(self.output, _lines(ordered))
        for path in self._files():
            if path != self.output:
                path.unlink()


def _fix(overwrite: bool | None) -> str:
    if overwrite is None:
        return "Delete it, or write to another output."
    return "Choose another `output`, or set `overwrite: true` to start again."


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
